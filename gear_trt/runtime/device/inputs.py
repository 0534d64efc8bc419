"""What the host decides of a step, sent to the device in one copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gear_trt.runtime.device.queue import Queue
from gear_trt.spec import graph

_ALIGNMENT = 256
"""Bytes: TensorRT wants it of every tensor."""


@dataclass(frozen=True)
class StepShape:
    """Sizes of one run of a graph.

    Attributes:
        batch: Rows, idle ones included.
        seq_len: Columns of the tokens, padding included.
        max_pages: Columns of the page table, unused ones included.
    """

    batch: int
    seq_len: int
    max_pages: int

    def inputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Element type and shape of every input that is no state, by its name in the graph."""
        return {
            graph.INPUT_IDS: ("int64", (self.batch, self.seq_len)),
            graph.PAGE_TABLE: ("int32", (self.batch, self.max_pages)),
            graph.SLOTS: ("int32", (self.batch,)),
            graph.PAST_LENGTHS: ("int32", (self.batch,)),
            graph.NEW_LENGTHS: ("int32", (self.batch,)),
        }


class StepInputs:
    """The inputs of a run, beside one another in device memory.

    Attributes:
        shape: Their sizes.
        tensors: Each on the device, by its name in the graph; they never move.

    Args:
        shape: Their sizes.
        queue: The device.
    """

    def __init__(self, shape: StepShape, queue: Queue) -> None:
        self.shape = shape
        self._queue = queue
        self._places: dict[str, _Place] = {}
        size = 0
        for name, (dtype, sizes) in shape.inputs().items():
            nbytes = int(np.prod(sizes)) * np.dtype(dtype).itemsize
            self._places[name] = _Place(slice(size, size + nbytes), dtype, sizes)
            size += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self._bytes = torch.empty(size, dtype=torch.uint8, device=queue.device)
        self.tensors = {name: place.of(self._bytes) for name, place in self._places.items()}

    def send(self, values: Mapping[str, NDArray[np.integer]]) -> None:
        """Queue the copy of a step's values; rows and columns beyond theirs are zeros: idle."""
        staged = self._queue.host_bytes(self._bytes.numel())  # a copy under way may use the last
        staged.zero_()
        for name, place in self._places.items():
            place.of(staged).numpy()[tuple(map(slice, values[name].shape))] = values[name]
        self._bytes.copy_(staged, non_blocking=True)


@dataclass(frozen=True)
class _Place:
    """Where an input lies among the bytes of all."""

    where: slice
    dtype: str
    sizes: tuple[int, ...]

    def of(self, all_bytes: Tensor) -> Tensor:
        return all_bytes[self.where].view(getattr(torch, self.dtype)).reshape(self.sizes)
