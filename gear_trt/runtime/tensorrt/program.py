"""One profile of an engine over the state of one cache: all that is asked of TensorRT in a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from gear_trt.runtime.backend import CacheMemory
from gear_trt.runtime.device.graph import Limits
from gear_trt.runtime.device.queue import Queue
from gear_trt.runtime.graph_state import state_names
from gear_trt.spec import graph


class Context(Protocol):
    """What is used of TensorRT's `IExecutionContext`."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Choose the profile."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Give it memory for activations."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set the shape of an input."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Set where an input or output lies."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue a run."""


class TensorRTProgram:
    """Implements `Program`.

    Attributes:
        limits: The largest run of the profile.

    Args:
        context: An execution context without memory of its own.
        profile: Index of the profile.
        limits: The largest run of the profile.
        cache: Tensors of its state.
        scratch: [bytes] uint8 for activations; contexts that never run at the same time share it.
        queue: The device.
    """

    def __init__(
        self,
        context: Context,
        profile: int,
        limits: Limits,
        cache: CacheMemory,
        *,
        scratch: Tensor,
        queue: Queue,
    ) -> None:
        self.limits = limits
        self._context = context
        self._queue = queue
        self._cache = cache  # keeps the bound memory alive
        self._scratch = scratch  # likewise
        if not context.set_optimization_profile_async(profile, queue.handle):
            raise RuntimeError(f"TensorRT refuses profile {profile}")
        context.set_device_memory(scratch.data_ptr(), scratch.nbytes)
        for (input_name, output_name), tensor in state_names(cache):
            self._set_input(input_name, tensor)
            self._set_address(output_name, tensor)

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Program.run`.

        Raises:
            RuntimeError: TensorRT refuses; its log says why.
        """
        for name, tensor in tensors.items():
            if name == graph.LOGITS:
                self._set_address(name, tensor)
            else:
                self._set_input(name, tensor)
        if not self._context.execute_async_v3(self._queue.handle):
            raise RuntimeError("TensorRT refuses to run the engine; its log says why")

    def _set_input(self, name: str, tensor: Tensor) -> None:
        if not self._context.set_input_shape(name, tuple(tensor.shape)):
            raise RuntimeError(f"TensorRT refuses shape {list(tensor.shape)} of {name}")
        self._set_address(name, tensor)

    def _set_address(self, name: str, tensor: Tensor) -> None:
        if not self._context.set_tensor_address(name, tensor.data_ptr()):
            raise RuntimeError(f"TensorRT refuses the address of {name}")
