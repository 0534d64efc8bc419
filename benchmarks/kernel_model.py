"""Rooflines, predicted times and occupancy of the CUDA kernels: the tables of docs/kernels.md.

Run: python -m benchmarks.kernel_model [--check]

Bytes come from `gear_trt.spec`, shared memory from the kernels' own headers, registers from the
committed report of ptxas. Everything else that goes in is written down here, with its source.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu_decoder import LLAMA_3_8B, Decoder
from benchmarks.gpu_shapes import (
    CONFIGS,
    HALF_BYTES,
    SHAPES,
    TARGETS,
    Shape,
    decode_bytes,
    decode_flops,
    fp16_bytes,
)
from benchmarks.gpu_throughput import CACHES, PAPER_LOAD, largest_batch
from gear_trt.spec import PRESETS, CompressionConfig, page_layout
from gear_trt.spec.layout import CONFIG_VARIABLES

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "kernels.md"
PTXAS_BUDGET = REPOSITORY / "plugins" / "cuda" / "ptxas_budget.json"

PAPER = {name: CompressionConfig.preset(name) for name in PRESETS if name.startswith("paper")}
HEAD_DIMS = (64, 128)
GROUPS = (1, 4, 8)
MEMORIES_GIB = (24, 75)
"""A small card, and what CUDA leaves of an H100."""

READ_SHARE = 0.90
"""Of the data sheet's bandwidth, what reading alone reaches: 4.2 to 4.4 of 4.8 TB/s on H200."""
FP16_SHARE, FP16_FIXED_US = 0.97, 10.0
"""FlashAttention 3 decoding in BF16 as published for H200: 10 µs + bytes at 4.2 TB/s."""
OUR_SHARES, OUR_FIXED_US = (0.75, 0.88), 7.0
"""What issue and literature let one ask of these kernels: must, and moonshot. Not measured."""
LATENCY_SECONDS = 700e-9
"""From a load to its data on Hopper, under load: what must be in flight meanwhile."""
MMA_ROWS = 8
"""Query rows that one product of the tensor cores has room for (n of m16n8k16)."""
CODES_PER_LOP3, LOP3_PER_CLOCK = 2, 64
"""One LOP3 turns two codes into halves; a multiprocessor issues 64 a clock."""
MMA_SYNC_SHARE = 0.62
"""Of Hopper's tensor throughput, what mma.sync reaches; on the others it is all there is."""
RESERVED_BYTES = 1024
"""Shared memory that the driver keeps of every block."""
REGISTERS, REGISTER_UNIT = 65536, 8
"""Of one multiprocessor, and how many a thread takes at a time."""


@dataclass(frozen=True)
class Gpu:
    """Facts of data sheets.

    Attributes:
        name: The card.
        architecture: As ptxas names it.
        bandwidth: Bytes per second.
        processors: Multiprocessors.
        clock: Boost clock, Hz.
        tensor_flops: FP16 with FP32 sums, dense, that mma.sync reaches, per second.
        shared_bytes: Of one multiprocessor.
        block_bytes: Shared memory that one block may have.
    """

    name: str
    architecture: str
    bandwidth: float
    processors: int
    clock: float
    tensor_flops: float
    shared_bytes: int
    block_bytes: int


GPUS = (
    Gpu("H100 SXM", "sm_90", 3.35e12, 132, 1.98e9, 989e12 * MMA_SYNC_SHARE, 233472, 232448),
    Gpu("H200 SXM", "sm_90", 4.80e12, 132, 1.98e9, 989e12 * MMA_SYNC_SHARE, 233472, 232448),
    Gpu("A100 SXM 80 GB", "sm_80", 2.04e12, 108, 1.41e9, 312e12, 167936, 166912),
    Gpu("L40S", "sm_89", 0.864e12, 142, 2.52e9, 362e12, 102400, 101376),
)

Rows = Sequence[Sequence[str]]


def our_us(gpu: Gpu, size: int, share: float) -> float:
    """Predicted time of one decode step of one layer that reads `size` bytes."""
    return OUR_FIXED_US + 1e6 * size / (gpu.bandwidth * READ_SHARE * share)


def fp16_us(gpu: Gpu, size: int) -> float:
    """Predicted time of the same step over an FP16 cache."""
    return FP16_FIXED_US + 1e6 * size / (gpu.bandwidth * READ_SHARE * FP16_SHARE)


# --- Tables ---------------------------------------------------------------------------------------


def bytes_table() -> str:
    """Bytes and arithmetic per token and KV head."""
    rows = [
        _bytes_row(f"`{name}`", head_dim, page_layout(config, head_dim).page_bytes / config.chunk)
        for name, config in {**CONFIGS, **PAPER}.items()
        for head_dim in HEAD_DIMS
    ]
    rows += [_bytes_row("FP16", head_dim, _half_bytes(head_dim)) for head_dim in HEAD_DIMS]
    titles = ["config", "D", "bits per element", "bytes", "smaller than FP16"]
    return _table([*titles, *(f"flop/byte, G={group}" for group in GROUPS)], rows)


def _bytes_row(name: str, head_dim: int, size: float) -> list[str]:
    bits = 8 * size / (2 * head_dim)
    intensity = [f"{4 * group * head_dim / size:.1f}" for group in GROUPS]
    smaller = f"{_half_bytes(head_dim) / size:.2f}"
    return [name, str(head_dim), f"{bits:.2f}", f"{size:.0f}", smaller, *intensity]


def _half_bytes(head_dim: int) -> int:
    return 2 * head_dim * HALF_BYTES


def bounds_table() -> str:
    """What limits one decode step, GPU by GPU."""
    shape = Shape(8, 32768, 4)
    rows = []
    for gpu in GPUS:
        for name in ("k4v4", "k2v2"):
            config = CONFIGS[name]
            codes = 2 * shape.batch * shape.kv_heads * shape.past(config) * shape.head_dim
            codes_per_second = CODES_PER_LOP3 * LOP3_PER_CLOCK * gpu.processors * gpu.clock
            padded = decode_flops(shape, config) * MMA_ROWS / shape.group
            rows.append(
                [
                    gpu.name,
                    f"`{name}`",
                    f"{1e6 * decode_bytes(shape, config) / (gpu.bandwidth * READ_SHARE):.0f}",
                    f"{1e6 * codes / codes_per_second:.0f}",
                    f"{1e6 * padded / gpu.tensor_flops:.0f}",
                    f"{gpu.tensor_flops / (gpu.bandwidth * READ_SHARE):.0f}",
                ]
            )
    titles = ["GPU", "config", "memory µs", "unpacking µs", "tensor cores µs"]
    return _table([*titles, "balance, flop/byte"], rows)


def prediction_table(gpu: Gpu) -> str:
    """Predicted times and ratios of the benchmark's shapes at G = 4."""
    rows = []
    for shape in (shape for shape in SHAPES if shape.group == 4):
        baseline = fp16_us(gpu, fp16_bytes(shape, CONFIGS["k4v4"]))
        row = [str(shape.batch), str(shape.context), f"{baseline:.0f}"]
        for config in CONFIGS.values():
            slow, fast = (our_us(gpu, decode_bytes(shape, config), share) for share in OUR_SHARES)
            ratios = f"{baseline / slow:.1f}–{baseline / fast:.1f}×"
            row.append(f"{fast:.0f}–{slow:.0f} ({ratios})")
        rows.append(row)
    return _table(["B", "context", "FP16 µs", *(f"`{name}`" for name in CONFIGS)], rows)


def capacity_table() -> str:
    """Sequences of the throughput benchmark that a memory holds beside the weights."""
    device = torch.device("meta")
    decoder, tokens = Decoder(LLAMA_3_8B, 1, device), PAPER_LOAD.tokens
    rows = []
    for name, make in CACHES.items():
        size = make(LLAMA_3_8B, 1, tokens, device).nbytes
        batches = [largest_batch(name, decoder, PAPER_LOAD, gib << 30) for gib in MEMORIES_GIB]
        rows.append([f"`{name}`", f"{size / 1e6:.1f}", *map(str, batches)])
    titles = ["cache", f"MB per sequence of {tokens} tokens"]
    return _table([*titles, *(f"B in {gib} GiB" for gib in MEMORIES_GIB)], rows)


def targets_table() -> str:
    """The targets that `make gpu-check` judges by."""
    rows = [
        [
            target.name,
            ", ".join(f"`{name}`" for name in target.configs) or "all",
            f"{'≤' if target.is_upper else '≥'} {target.must}",
            "–" if target.moonshot is None else str(target.moonshot),
        ]
        for target in TARGETS
    ]
    return _table(["target", "configs", "must", "moonshot"], rows)


def occupancy_table() -> str:
    """Blocks of the decode kernel on a multiprocessor, and bytes that they have in flight."""
    registers = ptxas_registers()
    names = [(name, head_dim) for head_dim in HEAD_DIMS for name in CONFIGS]
    sizes = shared_sizes([(CONFIGS[name], head_dim) for name, head_dim in names])
    rows = [
        _occupancy_row(gpu, name, head_dim, blocks, registers[gpu.architecture, head_dim])
        for (name, head_dim), blocks in zip(names, sizes, strict=True)
        for gpu in (GPUS[0], *GPUS[2:])  # H200 has the multiprocessors of H100
    ]
    titles = ["config", "D", "GPU", "registers", "shared KB per block"]
    titles += ["blocks by registers / shared memory", "warps", "KB in flight / needed"]
    return _table(titles, rows)


def _occupancy_row(
    gpu: Gpu, name: str, head_dim: int, sizes: Sequence[SharedSize], registers: int
) -> list[str]:
    shared = next(size for size in sizes if size.block <= gpu.block_bytes)
    by_registers = REGISTERS // (_round_up(registers, REGISTER_UNIT) * 32 * shared.warps)
    by_shared = gpu.shared_bytes // (shared.block + RESERVED_BYTES)
    warps = min(by_registers, by_shared) * shared.warps
    flight = warps * page_layout(CONFIGS[name], head_dim).page_bytes
    needed = gpu.bandwidth * READ_SHARE * LATENCY_SECONDS / gpu.processors
    return [
        f"`{name}`",
        str(head_dim),
        gpu.name,
        str(registers),
        f"{shared.block / 1024:.0f}",
        f"{by_registers} / {by_shared}",
        str(warps),
        f"{flight / 1024:.0f} / {needed / 1024:.0f}",
    ]


# --- What the kernels say of themselves -----------------------------------------------------------


@dataclass(frozen=True)
class SharedSize:
    """Warps of a block of the decode kernel, and its shared memory in bytes."""

    warps: int
    block: int


_PROGRAM = """
#include <cstdio>
#include "cuda/attention/decode.h"
int main() {
  using namespace gear::cuda;
  const gear::PageConfig configs[] = {%s};
  for (const gear::PageConfig& config : configs) {
    const int stage = (gear::page_layout(config).page_words * 4 + 127) / 128 * 128;
    const int scratch = scratch_bytes(config);
    for (int warps = kDecodeWarps; warps > 0; warps /= 2) {
      printf("%%d %%d ", warps, shared_layout(config.head_dim, warps, scratch, stage).bytes);
    }
    printf("\\n");
  }
}
"""


def shared_sizes(layers: Sequence[tuple[CompressionConfig, int]]) -> list[list[SharedSize]]:
    """Ask the kernels' headers, compiled for the host, what each config and head_dim takes.

    Returns:
        For each, the sizes of blocks of ever fewer warps: the launch takes the first that fits.

    Raises:
        subprocess.CalledProcessError: There is no C++ compiler, or the headers have changed.
    """
    members = [
        ", ".join(str(getattr(config, name)) for name in CONFIG_VARIABLES) + f", {head_dim}"
        for config, head_dim in layers
    ]
    program = _PROGRAM % ", ".join("{" + text + "}" for text in members)
    plugins = REPOSITORY / "plugins"
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "sizes.cpp", Path(folder) / "sizes"
        source.write_text(program)
        compiler = os.environ.get("CXX", "c++")
        options = ["-std=c++17", "-DGEAR_EMULATED_GPU", f"-I{plugins}", f"-I{plugins / 'include'}"]
        subprocess.run([compiler, *options, str(source), "-o", str(binary)], check=True)  # noqa: S603
        output = subprocess.run([str(binary)], check=True, capture_output=True, text=True)  # noqa: S603
    lines = [[int(word) for word in line.split()] for line in output.stdout.splitlines()]
    return [
        [SharedSize(warps, block) for warps, block in zip(line[::2], line[1::2], strict=True)]
        for line in lines
    ]


def ptxas_registers() -> dict[tuple[str, int], int]:
    """Registers of the decode kernel by architecture and head_dim: the committed budget."""
    budget = json.loads(PTXAS_BUDGET.read_text())
    return {
        (architecture, head_dim): usage["registers"]
        for head_dim in HEAD_DIMS
        for architecture, usage in budget[f"attend_decode<{head_dim}>"].items()
    }


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


# --- The page -------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[], str]] = {
    "bytes": bytes_table,
    "bounds": bounds_table,
    "capacity": capacity_table,
    "targets": targets_table,
    "occupancy": occupancy_table,
    **{
        f"prediction {gpu.name}": lambda gpu=gpu: prediction_table(gpu)  # type: ignore[misc]
        for gpu in GPUS
    },
}


def updated(text: str) -> str:
    """Return the page with every table between its markers written anew.

    Raises:
        ValueError: A table has no markers on the page.
    """
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        pattern = re.escape(begin) + r".*?" + re.escape(end)
        text, count = re.subn(pattern, lambda _: begin + make() + end, text, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise ValueError(f"the page has {count} places for the table '{name}'")
    return text


def _table(titles: Sequence[str], rows: Rows) -> str:
    lines = [list(titles), ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> int:
    """Write the page; with --check only say whether it is up to date."""
    text = PAGE.read_text()
    new = updated(text)
    if "--check" in sys.argv[1:]:
        if new != text:
            print(f"{PAGE} is out of date: run `python -m benchmarks.kernel_model`")
        return int(new != text)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
