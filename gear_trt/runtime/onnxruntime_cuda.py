"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, with the kernels of libgear_cuda."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from onnx import TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort
from torch import Tensor

from gear_trt import cuda
from gear_trt.runtime.backend import GPU_PACE, CacheLimits, CacheMemory
from gear_trt.runtime.device.graph import DeviceGraph, Limits, Programs
from gear_trt.runtime.device.queue import CudaQueue, Queue
from gear_trt.runtime.faults import activation_fault
from gear_trt.runtime.graph_state import state_names
from gear_trt.runtime.memory import DeviceMemory
from gear_trt.runtime.onnxruntime import (
    FAILURES,
    load_failure,
    logits_dtype,
    open_session,
    run_failure,
    session_options,
)
from gear_trt.runtime.requirements import CUDA_PROVIDER, require_onnxruntime_cuda
from gear_trt.spec import ACTIVATION_DTYPES


class OnnxRuntimeCudaBackend:
    """A session over the `model.onnx` of an engine folder; state and steps lie on a device.

    Attributes:
        memory: The device's.
        cache_limits: There are none.
        pace: Of GPUs.

    Args:
        path: The graph, for messages.
        session: The loaded graph.
        queue: The device.
        vocab_size: Width of the logits.
        raise_faults: Waits for the stream and raises ValueError with what the kernels met.
    """

    cache_limits = CacheLimits()
    pace = GPU_PACE

    def __init__(
        self,
        path: Path,
        session: Any,  # noqa: ANN401 - untyped, as is the binding
        queue: Queue,
        *,
        vocab_size: int,
        raise_faults: Callable[[int], None] = cuda.raise_onnxruntime_errors,
    ) -> None:
        self.memory = DeviceMemory(queue)
        self._path = path
        self._session = session
        self._queue = queue
        self._vocab_size = vocab_size
        self._raise_faults = raise_faults

    @classmethod
    def open(cls, folder: Path, *, vocab_size: int, threads: int) -> Self:
        """Load the graph on the current GPU.

        Args:
            folder: The engine folder.
            vocab_size: Width of the logits.
            threads: CPU threads of what ONNX Runtime leaves on the CPU.

        Raises:
            GearError: Those of `require_onnxruntime_cuda`; `MISSING_FILE` or `DAMAGED_ENGINE`.
        """
        require_onnxruntime_cuda()
        queue = CudaQueue(torch.device("cuda", torch.cuda.current_device()))
        options = {"device_id": str(queue.device.index), "user_compute_stream": str(queue.handle)}
        path, session = open_session(
            folder, session_options(threads, cuda.library_path()), [(CUDA_PROVIDER, options)]
        )
        return cls(path, session, queue, vocab_size=vocab_size)

    def bind(self, cache: CacheMemory) -> DeviceGraph:
        """Bind the memory of a cache, made with `memory`, to the graph.

        Raises:
            GearError: `DAMAGED_ENGINE` where the graph has other inputs than its manifest says.
        """
        try:
            program = OrtProgram(self._session, cache, self._queue)
            dtype = getattr(torch, logits_dtype(self._session, self._vocab_size, ACTIVATION_DTYPES))
        except FAILURES as error:
            raise load_failure(self._path, str(error)) from None
        programs = Programs(program, None, dtype, self._vocab_size, self._check_faults)
        return DeviceGraph(programs, cache, self._queue)

    def _check_faults(self) -> None:
        try:
            self._raise_faults(self._queue.handle)
        except ValueError as error:
            raise activation_fault(str(error)) or error from None


class OrtProgram:
    """Implements `Program`: a binding whose state is bound once.

    Attributes:
        limits: None.

    Args:
        session: The loaded graph.
        cache: Tensors of its state.
        queue: The device.
    """

    limits = Limits()

    def __init__(self, session: Any, cache: CacheMemory, queue: Queue) -> None:  # noqa: ANN401
        self._session = session
        self._cache = cache  # keeps the bound memory alive
        self._device = queue.device
        self._binding: Any = session.io_binding()
        self._outputs = {output.name for output in session.get_outputs()}
        self._options: Any = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        for (input_name, output_name), tensor in state_names(cache):
            self._bind(self._binding.bind_input, input_name, tensor)
            self._bind(self._binding.bind_output, output_name, tensor)

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Program.run`."""
        for name, tensor in tensors.items():
            is_output = name in self._outputs
            self._bind(
                self._binding.bind_output if is_output else self._binding.bind_input, name, tensor
            )
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except FAILURES as error:
            raise run_failure(error) from None

    def _bind(self, bind: Callable[..., None], name: str, tensor: Tensor) -> None:
        dtype = str(tensor.dtype).removeprefix("torch.")
        # ONNX Runtime knows types by numpy's names, and by ONNX's numbers where numpy has none.
        element = TensorProto.BFLOAT16 if dtype == "bfloat16" else dtype
        shape = tuple(tensor.shape)
        bind(name, self._device.type, self._device.index or 0, element, shape, tensor.data_ptr())
