"""Sessions of one node and their bound memory, the same for us and for our peers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

from gear_trt.runtime.onnxruntime import session_options

Arrays = Mapping[str, NDArray[Any]]


def open_session(model: onnx.ModelProto, *, threads: int) -> Any:  # noqa: ANN401 - untyped
    """Load a model with the options of every engine: threads that wait do not spin."""
    return InferenceSession(
        model.SerializeToString(), session_options(threads), ["CPUExecutionProvider"]
    )


class BoundCall:
    """One call whose inputs and outputs lie where the caller has put them.

    Args:
        session: The loaded node.
        inputs: Memory by input name.
        outputs: Memory by output name; state that is updated in place is in both.
    """

    def __init__(
        self,
        session: Any,  # noqa: ANN401 - as above
        inputs: Arrays,
        outputs: Arrays,
    ) -> None:
        self._session = session
        self._memory = (inputs, outputs)  # a binding does not keep it alive
        self._binding = session.io_binding()
        for bind, arrays in (
            (self._binding.bind_input, inputs),
            (self._binding.bind_output, outputs),
        ):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def __call__(self) -> None:
        """Run the node once."""
        self._session.run_with_iobinding(self._binding)
