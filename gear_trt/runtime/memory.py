"""Where the state of a cache lies: the host's memory, or a device's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError

if TYPE_CHECKING:
    import torch

StateArray = Any
"""An array of a `Memory`: numpy's in the host's memory, a torch tensor on a device."""

Rows = slice | Sequence[int] | NDArray[np.int32]
"""What of the first axis."""


class Memory(Protocol):
    """Makes arrays, and moves parts of them between where they lie and the host."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> StateArray:
        """Return a new array of zeros.

        Raises:
            GearError: `OUT_OF_MEMORY`.
        """
        ...

    def read(self, array: StateArray, rows: Rows = slice(None)) -> NDArray[Any]:
        """Return some rows of an array on the host, after all that was queued before."""
        ...

    def write(self, array: StateArray, values: NDArray[Any], rows: Rows = slice(None)) -> None:
        """Replace some rows of an array."""
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


class DeviceMemory:
    """Torch tensors on one device. Their memory is taken at once.

    Args:
        device: Where they lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """See `Memory.zeros`."""
        import torch

        try:
            return torch.zeros(shape, dtype=getattr(torch, dtype), device=self.device)
        except torch.OutOfMemoryError:
            raise _no_room(f"on {self.device}", shape, dtype) from None

    def read(self, array: StateArray, rows: Rows = slice(None)) -> NDArray[Any]:
        """See `Memory.read`."""
        found: NDArray[Any] = array[_index(rows)].cpu().numpy()
        return found

    def write(self, array: StateArray, values: NDArray[Any], rows: Rows = slice(None)) -> None:
        """See `Memory.write`."""
        import torch

        array[_index(rows)] = torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def _index(rows: Rows) -> slice | list[int]:
    return rows if isinstance(rows, slice) else [int(row) for row in rows]


def _no_room(where: str, shape: tuple[int, ...], dtype: str) -> GearError:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return GearError(
        ErrorCode.OUT_OF_MEMORY,
        f"a layer's cache does not fit {where}: no room for {size:,} bytes",
        hint="load the engine with a smaller max_tokens or batch",
    )
