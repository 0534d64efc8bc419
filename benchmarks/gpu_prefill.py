"""Prefill of one sequence, pages written, beside PyTorch's causal attention that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_history import nmse
from benchmarks.gpu_peers import sdpa
from benchmarks.gpu_shapes import CONFIGS, HEAD_DIM, KV_HEADS, Shape
from benchmarks.gpu_timing import Machine
from gear_trt.reference.cache import num_pages
from gear_trt.runtime.footprint import buffer_shape
from gear_trt.spec import CompressionConfig, page_layout
from gear_trt.torch import attention, raise_errors

_CONFIG = "k4v4"
_GROUP = 4


def prefill_rows(
    machine: Machine, lengths: Sequence[int], *, kv_heads: int = KV_HEADS, head_dim: int = HEAD_DIM
) -> Iterator[dict[str, Any]]:
    """Measure prompts of these lengths."""
    config = CONFIGS[_CONFIG]
    for length in lengths:
        shape = Shape(1, length, _GROUP, kv_heads, head_dim)
        query, key, value = _random_prompt(shape, length, machine.device)
        ours = _prefill(query, key, value, shape, config)
        by_heads = [x.transpose(1, 2).contiguous() for x in (query, key, value)]

        def theirs(by_heads: list[Tensor] = by_heads) -> Tensor:
            return sdpa(*by_heads, is_causal=True)

        error = nmse(ours(), theirs().transpose(1, 2))
        timing, baseline = machine.time([ours]), machine.time([theirs])
        raise_errors(machine.device)
        yield {
            "kind": "prefill",
            "config": _CONFIG,
            "batch": 1,
            "context": length,
            "group": _GROUP,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            **timing.fields(),
            "best_fp16": "sdpa-flash",
            "best_fp16_us": baseline.median_us,
            "ratio": baseline.median_us / timing.median_us,
            "nmse": error,
        }


def _random_prompt(
    shape: Shape, length: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(length)

    def tokens(heads: int) -> Tensor:
        size = (1, length, heads, shape.head_dim)
        return torch.randn(size, generator=generator, device=device, dtype=torch.float16)

    return tokens(shape.num_heads), tokens(shape.kv_heads), tokens(shape.kv_heads)


def _prefill(
    query: Tensor, key: Tensor, value: Tensor, shape: Shape, config: CompressionConfig
) -> Callable[[], Tensor]:
    device, length = query.device, query.shape[1]
    pages = max(num_pages(length, config), 1)
    words = page_layout(config, shape.head_dim).page_words
    zero = torch.zeros(1, dtype=torch.int32, device=device)
    state = {
        "page_pool": torch.zeros((pages, shape.kv_heads, words), dtype=torch.int32, device=device),
        "residual_buffer": torch.zeros(
            (1, *buffer_shape(shape.facts(config))), dtype=torch.float16, device=device
        ),
        "page_table": torch.arange(pages, dtype=torch.int32, device=device)[None],
        "slots": zero,
        "past_lengths": zero,
        "new_lengths": torch.full_like(zero, length),
    }
    scale = shape.head_dim**-0.5
    return lambda: attention(query, key, value, **state, config=config, scale=scale)
