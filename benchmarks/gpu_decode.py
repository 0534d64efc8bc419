"""Decode steps over compressed pages beside the same steps over FP16 caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from benchmarks.gpu_history import (
    CompressedHistory,
    History,
    Step,
    exact_attention,
    nmse,
    random_history,
    random_step,
)
from benchmarks.gpu_peers import decode_peers
from benchmarks.gpu_shapes import CONFIGS, Shape, decode_bytes, fp16_bytes, page_pool_bytes
from benchmarks.gpu_timing import Machine
from gear_trt.spec import CompressionConfig
from gear_trt.torch import raise_errors

Row = dict[str, Any]


def decode_rows(machine: Machine, shapes: Sequence[Shape]) -> Iterator[Row]:
    """Measure every shape with every config and peer; one history serves all groups of a shape."""
    config = next(iter(CONFIGS.values()))
    for _, same in groupby(shapes, key=lambda shape: (shape.batch, shape.context)):
        groups = list(same)
        history = random_history(groups[0], groups[0].past(config), machine.device)
        for shape in groups:
            yield from _peer_rows(machine, shape, history, config)
        for name, compression in CONFIGS.items():
            yield from _gear_rows(machine, groups, history, name, compression)


def _gear_rows(
    machine: Machine, groups: list[Shape], history: History, name: str, config: CompressionConfig
) -> Iterator[Row]:
    copies = machine.copies(page_pool_bytes(groups[0], config))
    compressed = CompressedHistory(history, groups[0], config, copies)
    for shape in groups:
        step = random_step(shape, machine.device)
        calls = compressed.calls(step)
        error = nmse(calls[0](), exact_attention(history, step))
        timing = machine.time(calls)
        raise_errors(machine.device)
        yield {
            **_place(shape),
            "kind": "decode",
            "config": name,
            **timing.fields(),
            "bytes": decode_bytes(shape, config),
            "copies": copies,
            "nmse": error,
        }


def _peer_rows(
    machine: Machine, shape: Shape, history: History, config: CompressionConfig
) -> Iterator[Row]:
    step = random_step(shape, machine.device)
    whole = _with_new_token(history, step)
    copies = machine.copies(fp16_bytes(shape, config))
    for peer in decode_peers():
        row = {**_place(shape), "kind": "peer", "peer": peer.name, "is_fp16": peer.is_fp16}
        try:
            query = step.query_BSND.transpose(1, 2).contiguous()
            calls = [
                peer.prepare(query, whole.keys_BHTD.clone(), whole.values_BHTD.clone())
                for _ in range(copies)
            ]
            result = calls[0]().reshape(step.query_BSND.shape)
            error = nmse(result, exact_attention(history, step))
            timing = machine.time(calls)
        except Exception as failure:  # other people's code, of versions that nobody here has seen
            yield {**row, "failure": f"{type(failure).__name__}: {failure}"}
            continue
        yield {
            **row,
            **timing.fields(),
            "bytes": fp16_bytes(shape, config),
            "copies": copies,
            "nmse": error,
        }


def _with_new_token(history: History, step: Step) -> History:
    return History(
        *(
            torch.cat([past, new.transpose(1, 2)], dim=2)
            for past, new in (
                (history.keys_BHTD, step.key_BSHD),
                (history.values_BHTD, step.value_BSHD),
            )
        )
    )


def _place(shape: Shape) -> Row:
    return {
        "batch": shape.batch,
        "context": shape.context,
        "group": shape.group,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
    }
