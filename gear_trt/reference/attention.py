"""Attention of new tokens over a compressed past: decompress everything, then softmax."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gear_trt.reference.cache import IntArray, ReferenceCache, num_pages
from gear_trt.reference.half import FloatArray, FloatingArray
from gear_trt.reference.page import decompress_page


def attend(
    query_BSND: FloatingArray,
    key_BSHD: FloatingArray,
    value_BSHD: FloatingArray,
    cache: ReferenceCache,
    *,
    page_table: IntArray,
    slots: IntArray,
    past_lengths: IntArray,
    new_lengths: IntArray,
    scale: float,
    softcap: float = 0.0,
    sliding_window: int = 0,
) -> FloatingArray:
    """Attend causally; the cache is read, not changed.

    Args:
        query_BSND: [B, S, N, D] float32, float16 or bfloat16, post-RoPE; N = G · H.
        key_BSHD: [B, S, H, D], same dtype, post-RoPE: the new tokens, seen exactly.
        value_BSHD: [B, S, H, D], same dtype.
        cache: State before the new tokens are appended.
        page_table: [B, max_pages] page ids.
        slots: [B] buffer rows.
        past_lengths: [B] tokens before this call.
        new_lengths: [B] valid tokens of this call.
        scale: Factor of q·k.
        softcap: c in c·tanh(score / c); 0 turns it off.
        sliding_window: Newest tokens that a query sees, itself included; 0 means all.

    Returns:
        [B, S, N, D] of the query's dtype, rounded once, to nearest even; rows at and beyond
        new_lengths are 0.
    """
    dtype = query_BSND.dtype
    query_BSND, key_BSHD, value_BSHD = (
        side.astype(np.float32) for side in (query_BSND, key_BSHD, value_BSHD)
    )
    output_BSND = np.zeros_like(query_BSND)
    group = query_BSND.shape[2] // key_BSHD.shape[2]
    for b, new in enumerate(new_lengths):
        past = int(past_lengths[b])
        for head in range(key_BSHD.shape[2]):
            past_keys, past_values = decompress_sequence(
                cache, page_table[b], int(slots[b]), past, head
            )
            keys_TD = np.concatenate([past_keys, key_BSHD[b, :new, head]])
            values_TD = np.concatenate([past_values, value_BSHD[b, :new, head]])
            for s in range(new):
                first = max(past + s + 1 - sliding_window, 0) if sliding_window else 0
                visible = slice(first, past + s + 1)
                for n in range(head * group, (head + 1) * group):
                    scores = _scores(query_BSND[b, s, n], keys_TD[visible], scale, softcap)
                    output_BSND[b, s, n] = _softmax(scores) @ values_TD[visible]
    return output_BSND.astype(dtype)


def decompress_sequence(
    cache: ReferenceCache, page_ids: IntArray, slot: int, length: int, head: int
) -> tuple[FloatArray, FloatArray]:
    """Return keys and values [length, D] float32 of one sequence and KV head, in token order."""
    config = cache.config
    sinks = min(length, config.sinks)
    pages = num_pages(length, config)
    waiting = length - sinks - pages * config.chunk
    rows_2RD = cache.residual_buffer[slot, head].astype(np.float32)
    parts = [rows_2RD[:, :sinks]]
    parts += [
        np.stack(decompress_page(cache.page_pool[page, head], config, cache.head_dim))
        for page in page_ids[:pages]
    ]
    parts.append(rows_2RD[:, config.sinks : config.sinks + waiting])
    keys_TD, values_TD = np.concatenate(parts, axis=1)
    return keys_TD, values_TD


def _scores(
    query_D: FloatArray, keys_TD: FloatArray, scale: float, softcap: float
) -> NDArray[np.float64]:
    scores_T = keys_TD.astype(np.float64) @ query_D * scale
    return np.asarray(softcap * np.tanh(scores_T / softcap)) if softcap else scores_T


def _softmax(scores_T: NDArray[np.float64]) -> NDArray[np.float64]:
    weights_T = np.exp(scores_T - scores_T.max())
    return np.asarray(weights_T / weights_T.sum())
