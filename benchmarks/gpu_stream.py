"""The Triton kernel of `gpu_ceiling`; in a module of its own, because Triton is not everywhere."""

import triton
import triton.language as tl


@triton.jit
def read_blocks(numbers, sums, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201 - Triton's signature
    """Read BLOCK int32 numbers and write their sum."""
    block = tl.program_id(0).to(tl.int64)
    values = tl.load(numbers + block * BLOCK + tl.arange(0, BLOCK))
    tl.store(sums + block, tl.sum(values, axis=0))
