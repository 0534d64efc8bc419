"""The state of one layer, as the op sees it: page pool, residual buffer, append."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gear_trt.reference.half import FloatingArray
from gear_trt.reference.page import compress_page
from gear_trt.spec.config import CompressionConfig
from gear_trt.spec.layout import page_layout

IntArray = NDArray[np.int32]


class ReferenceCache:
    """Page pool and residual buffer of one layer.

    A token at position p of its sequence lives in buffer row p while p < sinks. After that, token
    i = p − sinks belongs to page i // C of the sequence and waits in buffer row sinks + i % C until
    its page is full; then the page is compressed, once, and never rewritten.

    Attributes:
        page_pool: [num_pages, H, page_words] int32.
        residual_buffer: [slots, H, 2, sinks + C, D] float16 (float32 for 32-bit configs).
    """

    def __init__(
        self,
        config: CompressionConfig,
        *,
        num_pages: int,
        slots: int,
        num_kv_heads: int,
        head_dim: int,
    ) -> None:
        self.config = config
        self.head_dim = head_dim
        words = page_layout(config, head_dim).page_words
        self.page_pool = np.zeros((num_pages, num_kv_heads, words), np.int32)
        self.residual_buffer = np.zeros(
            (slots, num_kv_heads, 2, config.sinks + config.chunk, head_dim), config.buffer_dtype
        )

    def append(
        self,
        key_BSHD: FloatingArray,
        value_BSHD: FloatingArray,
        *,
        page_table: IntArray,
        slots: IntArray,
        past_lengths: IntArray,
        new_lengths: IntArray,
    ) -> None:
        """Append the valid new tokens of every sequence; compress each chunk that became full.

        Args:
            key_BSHD: [B, S, H, D] float32, float16 or bfloat16, post-RoPE; rounded as the buffer
                rounds.
            value_BSHD: [B, S, H, D], same dtype.
            page_table: [B, max_pages] page ids.
            slots: [B] buffer rows.
            past_lengths: [B] tokens before this call.
            new_lengths: [B] valid tokens of this call.
        """
        for b, slot in enumerate(slots):
            for s in range(new_lengths[b]):
                position = int(past_lengths[b]) + s
                rows = self.residual_buffer[slot]
                row = buffer_row(position, self.config)
                rows[:, 0, row] = key_BSHD[b, s]
                rows[:, 1, row] = value_BSHD[b, s]
                if row == self.config.sinks + self.config.chunk - 1:
                    page = page_table[b, num_pages(position + 1, self.config) - 1]
                    self._compress(rows, int(page))

    def _compress(self, rows_H2RD: NDArray[np.generic], page: int) -> None:
        for head, (keys, values) in enumerate(rows_H2RD[:, :, self.config.sinks :]):
            self.page_pool[page, head] = compress_page(keys, values, self.config)


def buffer_row(position: int, config: CompressionConfig) -> int:
    """Row of the residual buffer that the token at `position` is written to."""
    if position < config.sinks:
        return position
    return config.sinks + (position - config.sinks) % config.chunk


def num_pages(length: int, config: CompressionConfig) -> int:
    """Full pages of a sequence of `length` tokens."""
    return max(length - config.sinks, 0) // config.chunk
