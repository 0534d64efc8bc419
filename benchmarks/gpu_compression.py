"""Compression of the chunk that became full, and its share of the decode steps that filled it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu_history import random_history
from benchmarks.gpu_shapes import CONFIGS, HEAD_DIM, KV_HEADS, Shape
from benchmarks.gpu_timing import Machine
from gear_trt.torch import compress_pages, raise_errors

_GROUP = 4


def compression_rows(
    machine: Machine,
    batches: Sequence[int],
    decode: Sequence[dict[str, Any]],
    *,
    kv_heads: int = KV_HEADS,
    head_dim: int = HEAD_DIM,
) -> Iterator[dict[str, Any]]:
    """Measure one page of every sequence and head.

    Args:
        machine: Where.
        batches: Sequences whose chunk becomes full at once.
        decode: Rows of `gpu_decode`; the share is taken of the shortest step of the same batch.
        kv_heads: H.
        head_dim: D.
    """
    for name, config in CONFIGS.items():
        for batch in batches:
            shape = Shape(batch, config.chunk, _GROUP, kv_heads, head_dim)
            history = random_history(shape, config.chunk, machine.device)
            keys, values = (
                side.reshape(batch * kv_heads, config.chunk, head_dim)
                for side in (history.keys_BHTD, history.values_BHTD)
            )
            timing = machine.time([lambda: compress_pages(keys, values, config)])  # noqa: B023
            raise_errors(machine.device)
            steps = [
                row["us"]
                for row in decode
                if row["kind"] == "decode"
                and (row["config"], row["batch"], row["group"]) == (name, batch, _GROUP)
            ]
            share = timing.median_us / config.chunk / min(steps) if steps else None
            yield {
                "kind": "compress",
                "config": name,
                "batch": batch,
                "context": config.chunk,
                "group": _GROUP,
                "kv_heads": kv_heads,
                "head_dim": head_dim,
                **timing.fields(),
                "us_per_page": timing.median_us / (batch * kv_heads),
                "decode_share": share,
            }
