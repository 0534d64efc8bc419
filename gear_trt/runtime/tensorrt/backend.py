"""A loaded engine: one copy of its weights for all caches, contexts and memory for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from gear_trt import tensorrt as plugins
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.backend import GPU_PACE, CacheLimits, CacheMemory
from gear_trt.runtime.device.graph import DeviceGraph, Limits, Programs
from gear_trt.runtime.device.queue import CudaQueue, Queue
from gear_trt.runtime.faults import activation_fault
from gear_trt.runtime.graph_state import state_names
from gear_trt.runtime.manifest import DECODE_PROFILE, PREFILL_PROFILE, Manifest
from gear_trt.runtime.memory import DeviceMemory
from gear_trt.runtime.tensorrt.check import check
from gear_trt.runtime.tensorrt.loading import LoadedEngine, load
from gear_trt.runtime.tensorrt.program import TensorRTProgram
from gear_trt.spec import graph

_PROFILES = (PREFILL_PROFILE, DECODE_PROFILE)
_LARGEST = 2
"""Index of the largest shape among the three of a profile."""
_UNITS = ("rows", "columns")
_LOGITS_DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}


class TensorRTBackend:
    """An engine on one GPU.

    Attributes:
        memory: The GPU's.
        pace: Of GPUs.

    Args:
        loaded: The engine.
        queue: The device; every cache is worked on through it.
        vocab_size: Width of the logits.
        raise_faults: Raises ValueError with what the plugin's kernels met, once they have run.
    """

    pace = GPU_PACE

    def __init__(
        self,
        loaded: LoadedEngine,
        queue: Queue,
        *,
        vocab_size: int,
        raise_faults: Callable[[], None] = plugins.raise_errors,
    ) -> None:
        self.memory = DeviceMemory(queue)
        self._loaded = loaded
        self._engine = loaded.engine
        self._queue = queue
        self._vocab_size = vocab_size
        self._raise_faults = raise_faults

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> Self:
        """Load the engine of a folder on the current GPU.

        Args:
            folder: The engine folder.
            manifest: Its manifest.

        Raises:
            GearError: Those of `check`, or `DAMAGED_ENGINE`.
        """
        file = check(folder, manifest)
        queue = CudaQueue(torch.device("cuda", torch.cuda.current_device()))
        with queue.active():
            loaded = load(file)
        return cls(loaded, queue, vocab_size=manifest.model.vocab_size)

    @cached_property
    def cache_limits(self) -> CacheLimits:
        """What the engine was built for, the same for the pools and the buffers of all layers."""
        return CacheLimits(
            num_pages=self._limit(graph.page_pool_input(0), 0),
            slots=self._limit(graph.residual_buffer_input(0), 0),
            max_pages=self._limit(graph.PAGE_TABLE, 1),
        )

    def bind(self, cache: CacheMemory) -> DeviceGraph:
        """Make contexts of the engine over a cache that was made with `memory`.

        Raises:
            GearError: `BAD_REQUEST` where the cache is larger than the engine was built for.
        """
        self._check_fit(cache)
        scratch = self._scratch()
        with self._queue.active():
            prefill, decode = (
                TensorRTProgram(
                    self._new_context(),
                    profile,
                    self._limits(profile),
                    cache,
                    scratch=scratch,
                    queue=self._queue,
                )
                for profile in _PROFILES
            )
        dtype = _LOGITS_DTYPES[self._engine.get_tensor_dtype(graph.LOGITS).name]
        both = Programs(prefill, decode, dtype, self._vocab_size, self._check_faults)
        return DeviceGraph(both, cache, self._queue)

    def _check_faults(self) -> None:
        self._queue.wait()
        try:
            self._raise_faults()
        except ValueError as error:
            raise activation_fault(str(error)) or error from None

    def _new_context(self) -> Any:  # noqa: ANN401 - TensorRT's
        context = self._engine.create_execution_context(
            self._loaded.module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise RuntimeError("TensorRT makes no execution context; its log says why")
        return context

    def _scratch(self) -> torch.Tensor:
        """Memory for activations that both contexts of a cache share: they take turns."""
        size = max(
            self._engine.get_device_memory_size_for_profile_v2(profile) for profile in _PROFILES
        )
        return torch.empty(max(size, 1), dtype=torch.uint8, device=self._queue.device)

    def _largest(self, name: str, profile: int) -> tuple[int, ...]:
        return tuple(self._engine.get_tensor_profile_shape(name, profile)[_LARGEST])

    def _limit(self, name: str, axis: int) -> int:
        """The largest size that both profiles take."""
        return min(self._largest(name, profile)[axis] for profile in _PROFILES)

    def _limits(self, profile: int) -> Limits:
        batch, seq_len = self._largest(graph.INPUT_IDS, profile)
        return Limits(batch, seq_len, self._largest(graph.PAGE_TABLE, profile)[1])

    def _check_fit(self, cache: CacheMemory) -> None:
        """Check pages and slots; rows of the page table may be more, steps are run in parts."""
        sizes = [(name, 0, tensor.shape[0]) for (name, _), tensor in state_names(cache)]
        sizes.append((graph.PAGE_TABLE, 1, cache.page_table.shape[1]))
        for name, axis, size in sizes:
            limit = self._limit(name, axis)
            if size > limit:
                raise GearError(
                    ErrorCode.BAD_REQUEST,
                    f"the engine was built for {limit} {_UNITS[axis]} of {name} at most, "
                    f"this cache has {size}",
                    hint="load it with a smaller batch or max_tokens, or build it for more",
                )
