"""Bytes that a cache takes: what pages, buffers and an FP16 cache of the same tokens cost."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import page_layout

FP16_BYTES = 2


def fp16_bytes_per_token(layers: Iterable[LayerFacts]) -> int:
    """Bytes that one token takes in an FP16 cache, K and V of all layers."""
    return sum(2 * layer.num_kv_heads * layer.head_dim * FP16_BYTES for layer in layers)


def page_bytes(layer: LayerFacts) -> int:
    """Bytes of one page of all KV heads of a layer: `chunk` tokens."""
    return layer.num_kv_heads * page_layout(layer.config, layer.head_dim).page_bytes


def page_bytes_per_token(layers: Iterable[LayerFacts]) -> float:
    """Bytes that one compressed token takes, all layers."""
    return sum(page_bytes(layer) / layer.config.chunk for layer in layers)


def page_shape(layer: LayerFacts) -> tuple[int, int]:
    """Shape of one page of all KV heads of a layer: [H, page_words]."""
    return layer.num_kv_heads, page_layout(layer.config, layer.head_dim).page_words


def buffer_shape(layer: LayerFacts) -> tuple[int, int, int, int]:
    """Shape of one sequence's residual buffer in a layer: [H, 2, sinks + C, D]."""
    config = layer.config
    return (layer.num_kv_heads, 2, config.sinks + config.chunk, layer.head_dim)


def buffer_bytes(layers: Iterable[LayerFacts]) -> int:
    """Bytes of the residual buffers of one sequence, all layers."""
    return sum(
        int(np.prod(buffer_shape(layer))) * np.dtype(layer.config.buffer_dtype).itemsize
        for layer in layers
    )
