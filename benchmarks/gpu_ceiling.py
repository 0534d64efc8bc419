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
    """Return a row with the highest rate at which memory was read, GB/s.

    Raises:
        RuntimeError: PyTorch cannot read on the device.
    """
    numbers = torch.ones(read_bytes // 4, dtype=torch.int32, device=machine.device)

    def rate(reader: Callable[[], object]) -> float:
        return numbers.nbytes / machine.time([reader]).median_us / 1e3

    rates = {"torch": rate(numbers.sum)}
    row: dict[str, Any] = {"kind": "ceiling"}
    if machine.device.type == "cuda":
        try:
            rates["triton"] = rate(_triton_reader(numbers))
        except Exception as failure:  # it compiles on this machine, with what it finds there
            row["triton_failure"] = f"{type(failure).__name__}: {failure}"
    best = max(rates, key=lambda name: rates[name])
    return {**row, "reader": best, "gb_per_s": rates[best], "readers": rates}


def _triton_reader(numbers: Tensor) -> Callable[[], object]:
    """A kernel that only loads: one sum per block is all that it writes."""
    from benchmarks.gpu_stream import read_blocks

    blocks = numbers.numel() // _BLOCK
    sums = torch.empty(blocks, dtype=torch.int32, device=numbers.device)
    return lambda: read_blocks[(blocks,)](numbers, sums, BLOCK=_BLOCK, num_warps=8)
