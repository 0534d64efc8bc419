"""ONNX Runtime on the CPU, with the library of custom ops."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

from gear_trt import native
from gear_trt.errors import ErrorCode, GearError, first_line
from gear_trt.runtime.backend import CPU_PACE, CacheLimits, CacheMemory
from gear_trt.runtime.faults import activation_fault
from gear_trt.runtime.graph_state import state_names
from gear_trt.runtime.manifest import MODEL_FILE
from gear_trt.runtime.memory import HostMemory, no_room_for_step
from gear_trt.spec import DOMAIN, GEAR_ATTENTION, graph

FAILURES = (
    ort.EPFail,
    ort.EngineError,
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.InvalidProtobuf,
    ort.NoModel,
    ort.NoSuchFile,
    ort.NotImplemented,
    ort.RuntimeException,
    RuntimeError,  # what a binding raises
    UnicodeDecodeError,  # what a message becomes that quotes damaged names
)
"""What ONNX Runtime raises."""
Provider = str | tuple[str, dict[str, str]]
"""Name of an execution provider, with its options where it has any."""

_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\) node with name '(.*)'")
_NO_MEMORY = re.compile(r"Failed to allocate memory|bad_alloc|out of memory", re.IGNORECASE)
_NO_CUDA = re.compile(
    rf"kernel for {DOMAIN}\.{GEAR_ATTENTION.name}\(\d+\) .*ep:'CPUExecutionProvider'"
)
EXPORT_AGAIN = "export the model again with `gear-export`"
HOST_DTYPES = ("float32", "float16")
"""Types of logits that numpy has."""
_FLOAT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
}


class OnnxRuntimeBackend:
    """A session over the `model.onnx` of an engine folder.

    Attributes:
        memory: The host's.
        cache_limits: There are none.
        pace: Of CPUs.

    Args:
        folder: The engine folder.
        vocab_size: Width of the logits.
        threads: Threads that one step may use.

    Raises:
        GearError: `MISSING_FILE`, `DAMAGED_ENGINE`, `LAYOUT_MISMATCH`, `MISSING_LIBRARY`, or
            `UNSUPPORTED_MODEL` for a type that ONNX Runtime does not compute with on CPUs.
    """

    memory = HostMemory()
    cache_limits = CacheLimits()
    pace = CPU_PACE

    def __init__(self, folder: Path, *, vocab_size: int, threads: int) -> None:
        self._vocab_size = vocab_size
        self._path, self._session = open_session(
            folder, session_options(threads), ["CPUExecutionProvider"]
        )

    def bind(self, cache: CacheMemory) -> OrtBoundGraph:
        """Bind the memory of a cache to the inputs and outputs of every layer.

        Raises:
            GearError: `DAMAGED_ENGINE` where the graph has other inputs than its manifest says.
        """
        try:
            return OrtBoundGraph(self._session, cache, vocab_size=self._vocab_size)
        except FAILURES as error:
            raise load_failure(self._path, str(error)) from None


class OrtBoundGraph:
    """Implements `BoundGraph`; state is bound once, so no step copies or moves it.

    Args:
        session: The loaded graph.
        cache: Memory for its state.
        vocab_size: Width of the logits.
    """

    def __init__(self, session: InferenceSession, cache: CacheMemory, *, vocab_size: int) -> None:
        self._session: Any = session  # untyped, as is the binding
        self._cache = cache  # keeps the bound memory alive
        self._binding: Any = session.io_binding()
        self._vocab_size = vocab_size
        self._logits_dtype = logits_dtype(session, vocab_size, HOST_DTYPES)
        for (input_name, output_name), array in state_names(cache):
            _bind(self._binding.bind_input, input_name, array)
            _bind(self._binding.bind_output, output_name, array)

    def run(
        self, tokens_BS: NDArray[np.int64], new_lengths: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """See `BoundGraph.run`."""
        logits_BSV = np.empty((*tokens_BS.shape, self._vocab_size), self._logits_dtype)
        for name, array in call_inputs(self._cache, tokens_BS, new_lengths).items():
            _bind(self._binding.bind_input, name, array)
        _bind(self._binding.bind_output, graph.LOGITS, logits_BSV)
        try:
            self._session.run_with_iobinding(self._binding)
        except FAILURES as error:
            raise run_failure(error) from None
        return logits_BSV


def call_inputs(
    cache: CacheMemory, tokens_BS: NDArray[np.int64], new_lengths: NDArray[np.int32]
) -> dict[str, NDArray[Any]]:
    """Return the inputs of a graph for one call, by name, but for the state of its layers."""
    return {
        graph.INPUT_IDS: tokens_BS,
        graph.NEW_LENGTHS: new_lengths,
        graph.PAGE_TABLE: cache.page_table,
        graph.SLOTS: cache.slots,
        graph.PAST_LENGTHS: cache.lengths,
    }


def _bind(bind: Callable[..., None], name: str, array: NDArray[np.generic]) -> None:
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def open_session(
    folder: Path,
    options: ort.SessionOptions,
    providers: Sequence[Provider],
    *,
    file: str = MODEL_FILE,
) -> tuple[Path, Any]:
    """Load a graph of an engine folder.

    Args:
        folder: The engine folder.
        options: What `session_options` returns.
        providers: Execution providers, the preferred one first.
        file: Name of the graph.

    Returns:
        The path of the graph, and its session (untyped, as is the binding).

    Raises:
        GearError: `MISSING_FILE`, or as `load_failure` says.
    """
    path = folder / file
    if not path.is_file():
        raise GearError(ErrorCode.MISSING_FILE, f"{folder} has no {file}", hint=EXPORT_AGAIN)
    try:
        return path, InferenceSession(path, options, providers)
    except FAILURES as error:
        raise load_failure(path, str(error)) from None


def session_options(threads: int, library: Path | None = None) -> ort.SessionOptions:
    """Options of every session: the thread count and the library of custom ops.

    Args:
        threads: Intra-op threads.
        library: The library of custom ops; None means the CPU's. A session takes only one.

    Raises:
        GearError: `MISSING_LIBRARY`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised; printing them as well repeats them
    # Threads that spin while they wait halve the speed wherever another process needs a core.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    library = library or native.library_path()
    try:
        options.register_custom_ops_library(str(library))
    except FAILURES as error:
        raise GearError(
            ErrorCode.MISSING_LIBRARY,
            f"onnxruntime cannot load {library}: {error}",
            hint="build it again with `pip install -e .` (needs a C++17 compiler)",
        ) from None
    return options


def logits_dtype(
    session: Any,  # noqa: ANN401 - untyped, as is the binding
    vocab_size: int,
    dtypes: Sequence[str],
) -> str:
    """Return the element type of a graph's logits: one of `dtypes`.

    Raises:
        RuntimeError: It has none of such a type, or of another width than its manifest says.
    """
    found = {output.name: output for output in session.get_outputs()}.get(graph.LOGITS)
    dtype = "" if found is None else _FLOAT_TYPES.get(found.type, "")
    if found is None or dtype not in dtypes:
        raise RuntimeError(f"the graph has no output {graph.LOGITS} in {' or '.join(dtypes)}")
    width = found.shape[-1] if found.shape else None
    if isinstance(width, int) and width != vocab_size:
        raise RuntimeError(f"the graph has {width} logits, its manifest says {vocab_size}")
    return dtype


def load_failure(path: Path, text: str) -> GearError:
    """Return the error of a graph that ONNX Runtime does not load, from its words."""
    if (missing := _NO_KERNEL.search(text)) is not None:
        return GearError(
            ErrorCode.UNSUPPORTED_MODEL,
            f"ONNX Runtime has no CPU kernel for node {missing[2]} ({missing[1]})",
            hint="mostly the cause is bfloat16: ONNX Runtime computes with it on GPUs only; "
            "export the model in float32 or float16",
        )
    if _NO_CUDA.search(text):
        return GearError(
            ErrorCode.MISSING_DEPENDENCY,
            "ONNX Runtime's CUDA provider does not start: it has said why on standard error",
            hint="pip install 'onnxruntime-gpu[cuda,cudnn]', which brings CUDA 13 and cuDNN 9",
        )
    own = _op_message(text)
    is_other_layout = own is not None and "page layout" in own
    return GearError(
        ErrorCode.LAYOUT_MISMATCH if is_other_layout else ErrorCode.DAMAGED_ENGINE,
        f"{path} does not load" + (f": {own}" if own else ""),
        hint=EXPORT_AGAIN,
        detail=None if own else text,
    )


def run_failure(error: Exception) -> GearError:
    """Return what a failed run is to the user."""
    text = str(error)
    if _NO_MEMORY.search(text):
        return no_room_for_step("the machine")
    own = _op_message(text)
    fault = activation_fault(own) if own else None
    return fault or GearError(
        ErrorCode.DAMAGED_ENGINE,
        own or f"the graph fails: {first_line(error)}",
        hint=f"{EXPORT_AGAIN}; if it fails again, please report it",
    )


def _op_message(text: str) -> str | None:
    """Return what the op said, without what ONNX Runtime put around it."""
    own = re.search(rf"{GEAR_ATTENTION.name}( layer \d+)?: .*", text)
    return own[0] if own else None
