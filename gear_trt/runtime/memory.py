"""Where the state of a cache lies: the host's memory, or a device's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError

if TYPE_CHECKING:
    import torch

    from gear_trt.runtime.device.queue import Queue

StateArray = Any
"""An array of a `Memory`, or a view of one: numpy's in the host's memory, a torch tensor on a
device. Slices, `view(dtype)` and `reshape` make views of both."""

Rows = slice | Sequence[int] | NDArray[np.int32]
"""What of the first axis."""


class Memory(Protocol):
    """Makes arrays, and moves parts of them where they lie, or to the host and back.

    All that it does comes after the steps before it, and before those after it.
    """

    def zeros(self, shape: tuple[int, ...], dtype: str) -> StateArray:
        """Return a new array of zeros.

        Raises:
            GearError: `OUT_OF_MEMORY`.
        """
        ...

    def read(self, array: StateArray, rows: Rows = slice(None)) -> NDArray[Any]:
        """Return some rows of an array on the host."""
        ...

    def write(self, array: StateArray, values: NDArray[Any], rows: Rows = slice(None)) -> None:
        """Replace some rows of an array."""
        ...

    def copy(self, pairs: Iterable[tuple[StateArray, StateArray]]) -> None:
        """Copy, not by way of the host.

        Args:
            pairs: Source and target of each copy: views of equal shape and type, without overlap.
        """
        ...

    def all_finite(self, arrays: Iterable[StateArray]) -> bool:
        """Return whether every element of some views is finite."""
        ...


class HostMemory:
    """Numpy arrays. The operating system gives their memory at the first write."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """See `Memory.zeros`."""
        try:
            return np.zeros(shape, dtype)
        except (MemoryError, ValueError):  # ValueError: beyond the address space
            raise _no_room("in memory", shape, dtype) from None

    def read(self, array: StateArray, rows: Rows = slice(None)) -> NDArray[Any]:
        """See `Memory.read`."""
        found: NDArray[Any] = array[rows]
        return found

    def write(self, array: StateArray, values: NDArray[Any], rows: Rows = slice(None)) -> None:
        """See `Memory.write`."""
        array[rows] = values

    def copy(self, pairs: Iterable[tuple[StateArray, StateArray]]) -> None:
        """See `Memory.copy`."""
        for source, target in pairs:
            target[...] = source

    def all_finite(self, arrays: Iterable[StateArray]) -> bool:
        """See `Memory.all_finite`."""
        return all(bool(np.isfinite(array).all()) for array in arrays)


class DeviceMemory:
    """Torch tensors on one device, used on the stream that steps run on. Memory is taken at once.

    Args:
        queue: The device and its stream.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """See `Memory.zeros`."""
        import torch

        device = self._queue.device
        try:
            with self._queue.active():
                return torch.zeros(shape, dtype=getattr(torch, dtype), device=device)
        except torch.OutOfMemoryError:
            raise _no_room(f"on {device}", shape, dtype) from None

    def read(self, array: StateArray, rows: Rows = slice(None)) -> NDArray[Any]:
        """See `Memory.read`."""
        with self._queue.active():
            found: NDArray[Any] = array[_index(rows)].cpu().numpy()
        return found

    def write(self, array: StateArray, values: NDArray[Any], rows: Rows = slice(None)) -> None:
        """See `Memory.write`."""
        import torch

        with self._queue.active():
            array[_index(rows)] = torch.from_numpy(np.ascontiguousarray(values)).to(array.device)

    def copy(self, pairs: Iterable[tuple[StateArray, StateArray]]) -> None:
        """See `Memory.copy`."""
        with self._queue.active():
            for source, target in pairs:
                target.copy_(source)

    def all_finite(self, arrays: Iterable[StateArray]) -> bool:
        """See `Memory.all_finite`."""
        import torch

        with self._queue.active():
            finite = [array.isfinite().all() for array in arrays]
            return not finite or bool(torch.stack(finite).all())


def _index(rows: Rows) -> slice | list[int]:
    return rows if isinstance(rows, slice) else [int(row) for row in rows]


def _no_room(where: str, shape: tuple[int, ...], dtype: str) -> GearError:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return GearError(
        ErrorCode.OUT_OF_MEMORY,
        f"a layer's cache does not fit {where}: no room for {size:,} bytes",
        hint="load the engine with a smaller max_tokens or batch, or allow a scheduler less cache",
    )


def no_room_for_step(where: str) -> GearError:
    """Return the error of a step whose intermediate results do not fit the memory."""
    return GearError(
        ErrorCode.OUT_OF_MEMORY,
        f"{where} has too little memory for this step",
        hint="use a smaller batch, or load the engine with a smaller max_tokens",
    )
