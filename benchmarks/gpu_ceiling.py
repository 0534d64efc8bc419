"""How fast the device reads memory when it does nothing else: the ceiling of every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_timing import Machine

READ_BYTES = 4 * 2**30
_BLOCK = 8192


def read_ceiling(machine: Machine, read_bytes: int = READ_BYTES) -> dict[str, Any]:
    """Return a row with the highest rate at which memory was read, GB/s."""
    numbers = torch.ones(read_bytes // 4, dtype=torch.int32, device=machine.device)
    readers: dict[str, Callable[[], object]] = {"torch": numbers.sum}
    if machine.device.type == "cuda":
        readers["triton"] = _triton_reader(numbers)
    rates = {
        name: numbers.nbytes / machine.time([reader]).median_us / 1e3
        for name, reader in readers.items()
    }
    best = max(rates, key=lambda name: rates[name])
    return {"kind": "ceiling", "reader": best, "gb_per_s": rates[best], "readers": rates}


def _triton_reader(numbers: Tensor) -> Callable[[], object]:
    """A kernel that only loads: one sum per block is all that it writes."""
    from benchmarks.gpu_stream import read_blocks

    blocks = numbers.numel() // _BLOCK
    sums = torch.empty(blocks, dtype=torch.int32, device=numbers.device)
    return lambda: read_blocks[(blocks,)](numbers, sums, BLOCK=_BLOCK, num_warps=8)
