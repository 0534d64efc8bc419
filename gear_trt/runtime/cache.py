"""The compressed keys and values of B sequences, as the graph reads and updates them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError
from gear_trt.reference.cache import num_pages
from gear_trt.runtime import cache_file
from gear_trt.runtime.footprint import (
    buffer_bytes,
    buffer_shape,
    fp16_bytes_per_token,
    page_bytes,
    page_shape,
)
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.runtime.memory import HostMemory, Memory, StateArray

IntArray = NDArray[np.int32]


class GearCache:
    """Page pools, residual buffers and page table of all layers.

    Every sequence owns a fixed run of pages, enough for `max_tokens`. In the host's memory pages
    that no token has reached cost nothing: the operating system gives it at the first write.

    Attributes:
        layers: Facts of every layer.
        max_tokens: Longest sequence, tokens.
        page_pools: Per layer [num_pages, H, page_words] int32.
        residual_buffers: Per layer [B, H, 2, sinks + C, D] float16, float32 for 32-bit configs.
        page_table: [B, max_pages] int32, page ids of each sequence in order.
        slots: [B] int32, buffer row of each sequence.
        lengths: [B] int32, tokens held of each sequence.
        token_ids: [B, max_tokens] int32, the tokens held.

    Args:
        layers: Facts of every layer, in order.
        batch: B, sequences.
        max_tokens: Tokens that each sequence can hold.
        memory: Where pools and buffers lie; None means the host's memory. What the host decides
            (page table, slots, lengths, tokens) is always numpy's.

    Raises:
        GearError: `OUT_OF_MEMORY`.
    """

    def __init__(
        self,
        layers: Sequence[LayerFacts],
        *,
        batch: int,
        max_tokens: int,
        memory: Memory | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.max_tokens = max_tokens
        self._memory = memory or HostMemory()
        # ONNX Runtime has no use for a pool without memory, hence at least one page.
        max_pages = max(1, *(num_pages(max_tokens, layer.config) for layer in self.layers))
        self.page_pools: list[StateArray] = [
            self._memory.zeros((batch * max_pages, *page_shape(layer)), "int32")
            for layer in self.layers
        ]
        self.residual_buffers: list[StateArray] = [
            self._memory.zeros((batch, *buffer_shape(layer)), layer.config.buffer_dtype)
            for layer in self.layers
        ]
        self.page_table = np.arange(batch * max_pages, dtype=np.int32).reshape(batch, max_pages)
        self.slots = np.arange(batch, dtype=np.int32)
        self.lengths = np.zeros(batch, np.int32)
        self.token_ids = np.zeros((batch, max_tokens), np.int32)
        self._page_bytes = [page_bytes(layer) for layer in self.layers]
        self._buffer_bytes = batch * buffer_bytes(self.layers)

    @property
    def batch(self) -> int:
        """B, sequences."""
        return len(self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes in use: pages that hold tokens, and all residual buffers."""
        return self._buffer_bytes + sum(
            size * self._used_pages(layer, sequence)
            for layer, size in zip(self.layers, self._page_bytes, strict=True)
            for sequence in range(self.batch)
        )

    @property
    def allocated_bytes(self) -> int:
        """Bytes of address space for `max_tokens` in every sequence."""
        return sum(array.nbytes for array in (*self.page_pools, *self.residual_buffers))

    @property
    def fp16_bytes(self) -> int:
        """Bytes that an FP16 cache takes for the same tokens."""
        return fp16_bytes_per_token(self.layers) * int(self.lengths.sum())

    @property
    def compression_ratio(self) -> float:
        """How many times smaller than an FP16 cache of the same tokens; 0 when empty."""
        return self.fp16_bytes / self.nbytes

    @property
    def bytes_per_token(self) -> float:
        """Bytes in use per token held, buffers included; 0 when empty."""
        tokens = int(self.lengths.sum())
        return self.nbytes / tokens if tokens else 0.0

    def tokens_held(self, sequence: int = 0) -> list[int]:
        """Return the tokens of one sequence."""
        held: list[int] = self.token_ids[sequence, : self.lengths[sequence]].tolist()
        return held

    def reset(self) -> None:
        """Forget all tokens."""
        self.lengths[:] = 0

    def advance(self, tokens_BS: NDArray[np.int64], new_lengths: IntArray) -> None:
        """Record the tokens that the graph has just appended.

        Args:
            tokens_BS: [B, S] int64; columns at and beyond `new_lengths` are padding.
            new_lengths: [B] int32.
        """
        for sequence, new in enumerate(new_lengths):
            start = self.lengths[sequence]
            self.token_ids[sequence, start : start + new] = tokens_BS[sequence, :new]
        self.lengths += new_lengths

    def save(self, path: str | Path) -> None:
        """Write the tokens held to a safetensors file; pages not in use are left out.

        Raises:
            GearError: `DISK_FULL`.
        """
        content = cache_file.CacheContent(
            lengths=self.lengths,
            token_ids=self.token_ids[:, : self.lengths.max()],
            pages=[
                self._memory.read(pool, self._used_page_ids(layer))
                for pool, layer in zip(self.page_pools, self.layers, strict=True)
            ],
            residual_buffers=[self._memory.read(rows) for rows in self.residual_buffers],
        )
        cache_file.write(Path(path), content, self.layers)

    def load(self, path: str | Path) -> None:
        """Replace the content by that of a file; memory stays where it is.

        Raises:
            GearError: `MISSING_FILE`; `BAD_CACHE_FILE` where it is damaged; `LAYOUT_MISMATCH` where
                another layout or config wrote it; `BAD_REQUEST` for another number of sequences;
                `CONTEXT_EXCEEDED` for more tokens than this cache can hold.
        """
        content = cache_file.read(Path(path), self.layers)
        self._check_fit(path, content.lengths)
        self.lengths[:] = content.lengths
        self.token_ids[:, : content.token_ids.shape[1]] = content.token_ids
        for index, layer in enumerate(self.layers):
            pages = self._used_page_ids(layer)
            self._memory.write(self.page_pools[index], content.pages[index], pages)
            self._memory.write(self.residual_buffers[index], content.residual_buffers[index])
        self.check_integrity()

    def check_integrity(self) -> None:
        """Check what must always hold: owners of pages and rows, lengths, finite rows.

        Raises:
            GearError: `BAD_CACHE_FILE`, naming what is wrong.
        """
        for fault, found in (
            ("a page has two owners", len(np.unique(self.page_table)) != self.page_table.size),
            ("a buffer row has two owners", len(np.unique(self.slots)) != self.batch),
            ("a length is negative", bool((self.lengths < 0).any())),
            ("a length is beyond max_tokens", bool((self.lengths > self.max_tokens).any())),
            ("a residual buffer holds a value that is not finite", not self._is_finite()),
        ):
            if found:
                raise GearError(
                    ErrorCode.BAD_CACHE_FILE,
                    f"the cache is damaged: {fault}",
                    hint="call reset() and prefill again",
                )

    def _check_fit(self, path: str | Path, lengths: IntArray) -> None:
        if len(lengths) != self.batch:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"{path} holds {len(lengths)} sequences, this cache has {self.batch}",
                hint=f"load the engine with batch={len(lengths)}",
            )
        longest = int(lengths.max())
        if longest > self.max_tokens:
            raise GearError(
                ErrorCode.CONTEXT_EXCEEDED,
                f"{path} holds {longest} tokens, this cache has room for {self.max_tokens}",
                hint=f"load the engine with max_tokens={longest} or more",
            )

    def _is_finite(self) -> bool:
        return self._memory.all_finite(self.residual_buffers)

    def _used_pages(self, layer: LayerFacts, sequence: int) -> int:
        return num_pages(int(self.lengths[sequence]), layer.config)

    def _used_page_ids(self, layer: LayerFacts) -> IntArray:
        return np.concatenate(
            [
                self.page_table[sequence, : self._used_pages(layer, sequence)]
                for sequence in range(self.batch)
            ]
        )
