"""One pool of pages and buffer rows for many sequences that come, share, fork and go."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError
from gear_trt.reference.cache import num_pages
from gear_trt.runtime import cache_file
from gear_trt.runtime.cache import empty_pool
from gear_trt.runtime.footprint import (
    buffer_bytes,
    buffer_shape,
    fp16_bytes_per_token,
    page_bytes,
)
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.runtime.pages import PageAllocator

IntArray = NDArray[np.int32]


@dataclass(eq=False)
class PagedSequence:
    """What one sequence holds of a `PagedCache`.

    Attributes:
        slot: Its row of the residual buffers.
        length: Tokens held.
        pages: Page ids in order.
        sink_page: Page that keeps the sink rows for other sequences; None while there is none.
        keys: Key of the sinks, then of each page that is published or was found.
    """

    slot: int
    length: int = 0
    pages: list[int] = field(default_factory=list)
    sink_page: int | None = None
    keys: list[bytes] = field(default_factory=list)

    @property
    def held_pages(self) -> list[int]:
        """All page ids, in the order in which they may be evicted."""
        return [*reversed(self.pages), *([] if self.sink_page is None else [self.sink_page])]


class PagedCache:
    """Page pools and residual buffers that sequences share.

    A page id means one page in every layer. Pages hold whole chunks and never change, so sequences
    that start with the same text hold the same pages. A sequence that joins at a page's end needs
    nothing else but the sink rows: these are kept in a page of their own. Tokens past the last
    shared page lie in its own buffer row.

    The key of a page is a hash of all that its bytes depend on: the tokens up to its end, and how
    many of them came as a prompt (in slices) and not one by one. So equal keys mean equal bytes,
    and no answer depends on what the cache happened to hold.

    Attributes:
        layers: Facts of every layer.
        page_pools: Per layer [num_pages, H, page_words] int32.
        residual_buffers: Per layer [slots, H, 2, sinks + C, D] float16, float32 for 32-bit configs.
        page_table: [B, max_pages] int32 of the step that is staged.
        slots: [B] int32 of the step that is staged.
        lengths: [B] int32 of the step that is staged, tokens before it.
        allocator: The books of the pages.

    Args:
        layers: Facts of every layer, in order.
        num_pages: Pages of each pool.
        slots: Sequences that can be open at the same time.
    """

    def __init__(self, layers: Sequence[LayerFacts], *, num_pages: int, slots: int) -> None:
        self.layers = tuple(layers)
        self.page_pools = [empty_pool(layer, num_pages) for layer in self.layers]
        self.residual_buffers: list[NDArray[np.generic]] = [
            np.zeros((slots, *buffer_shape(layer)), layer.config.buffer_dtype)
            for layer in self.layers
        ]
        self.page_table = np.zeros((0, 1), np.int32)
        self.slots = np.zeros(0, np.int32)
        self.lengths = np.zeros(0, np.int32)
        self.allocator = PageAllocator(num_pages)
        self._free_slots = list(range(slots - 1, -1, -1))
        self._open: set[PagedSequence] = set()
        self._page_bytes = sum(map(page_bytes, self.layers))
        self._buffer_bytes = buffer_bytes(self.layers)

    @classmethod
    def within(cls, layers: Sequence[LayerFacts], *, max_bytes: int, slots: int) -> Self:
        """Make the largest cache that fits a budget.

        Args:
            layers: Facts of every layer, in order.
            max_bytes: Bytes of all pools and residual buffers together.
            slots: Sequences that can be open at the same time.

        Raises:
            GearError: `BAD_REQUEST` where not even two pages fit.
        """
        page, buffers = sum(map(page_bytes, layers)), slots * buffer_bytes(layers)
        pages = (max_bytes - buffers) // page
        if pages < 2:  # one to keep the sinks, one for tokens
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"max_cache_bytes is {max_bytes}: the buffers of {slots} sequences take {buffers}, "
                f"a page {page}",
                hint=f"allow {buffers + 2 * page} bytes or more, or fewer sequences",
            )
        return cls(layers, num_pages=pages, slots=slots)

    @property
    def chunk(self) -> int:
        """Tokens of a page."""
        return self.layers[0].config.chunk

    @property
    def sinks(self) -> int:
        """First tokens of a sequence, which enter no page."""
        return self.layers[0].config.sinks

    @property
    def max_tokens(self) -> int:
        """Tokens that one sequence can hold when it is alone."""
        pages = self.allocator.num_pages - (self.sinks > 0)
        return self.sinks + (pages + 1) * self.chunk - 1

    @property
    def free_slots(self) -> int:
        """Sequences that can still be opened."""
        return len(self._free_slots)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all pools and buffers."""
        return sum(array.nbytes for array in (*self.page_pools, *self.residual_buffers))

    @property
    def nbytes(self) -> int:
        """Bytes that open sequences hold, pages and buffer rows; shared pages count once."""
        return self.allocator.held * self._page_bytes + len(self._open) * self._buffer_bytes

    @property
    def cached_bytes(self) -> int:
        """Bytes of pages that only later sequences may use."""
        return self.allocator.cached * self._page_bytes

    @property
    def fp16_bytes(self) -> int:
        """Bytes that an FP16 cache takes for the tokens of all open sequences, unshared."""
        return fp16_bytes_per_token(self.layers) * sum(one.length for one in self._open)

    def boundary(self, length: int) -> int:
        """Return where the page or first slice ends that the token at `length` belongs to."""
        return self.sinks + (max(length - self.sinks, 0) // self.chunk + 1) * self.chunk

    def pages_for(self, length: int) -> int:
        """Return the pages that a sequence of `length` tokens has, its sink page included."""
        full = num_pages(length, self.layers[0].config)
        return full + (full > 0 and self.sinks > 0)

    def open(self) -> PagedSequence | None:
        """Return an empty sequence, or None where every buffer row is taken."""
        if not self._free_slots:
            return None
        sequence = PagedSequence(self._free_slots.pop())
        self._open.add(sequence)
        return sequence

    def close(self, sequence: PagedSequence) -> None:
        """Give back all that a sequence holds; its published pages stay cached."""
        self._open.remove(sequence)
        self._free_slots.append(sequence.slot)
        self.allocator.release(sequence.held_pages)

    def fork(self, sequence: PagedSequence) -> PagedSequence | None:
        """Return a copy of a sequence, or None where every buffer row is taken.

        The pages are shared; only the buffer row is copied.
        """
        copy = self.open()
        if copy is None:
            return None
        for page in sequence.held_pages:
            self.allocator.hold(page)
        copy.length, copy.sink_page = sequence.length, sequence.sink_page
        copy.pages, copy.keys = list(sequence.pages), list(sequence.keys)
        for rows in self.residual_buffers:
            rows[copy.slot] = rows[sequence.slot]
        return copy

    def reserve(self, sequence: PagedSequence, new_tokens: int) -> bool:
        """Give a sequence the pages that its next tokens fill.

        Returns:
            False where there are too few; the sequence keeps those it got.
        """
        needed = num_pages(sequence.length + new_tokens, self.layers[0].config)
        while len(sequence.pages) < needed:
            page = self.allocator.allocate()
            if page is None:
                return False
            sequence.pages.append(page)
        return True

    def stage(self, sequences: Sequence[PagedSequence]) -> None:
        """Set `page_table`, `slots` and `lengths` for a step of these sequences."""
        width = max(1, *(len(sequence.pages) for sequence in sequences))
        self.page_table = np.zeros((len(sequences), width), np.int32)
        for row, sequence in zip(self.page_table, sequences, strict=True):
            row[: len(sequence.pages)] = sequence.pages
        self.slots = np.array([sequence.slot for sequence in sequences], np.int32)
        self.lengths = np.array([sequence.length for sequence in sequences], np.int32)

    def next_key(
        self, sequence: PagedSequence, tokens: Sequence[int], prompt_tokens: int
    ) -> bytes | None:
        """Return the key of the page that the sequence's next tokens fill.

        Args:
            sequence: A sequence.
            tokens: Its tokens, those to come included.
            prompt_tokens: How many of them are its prompt.

        Returns:
            None where the sequence is inside a page, or none of its pages can be shared.
        """
        at_boundary = sequence.length == 0 or self.boundary(sequence.length - 1) == sequence.length
        if not at_boundary or len(tokens) < self.boundary(sequence.length):
            return None
        keys = sequence.keys or [self._sink_key(tokens, prompt_tokens)]
        if len(keys) != num_pages(sequence.length, self.layers[0].config) + 1:
            return None
        return self._page_key(keys[-1], len(keys) - 1, tokens, prompt_tokens)

    def extend(self, sequence: PagedSequence, tokens: Sequence[int], prompt_tokens: int) -> int:
        """Go on with pages that the cache has; at least one token is left to run.

        Args:
            sequence: A sequence.
            tokens: Its tokens, those to come included.
            prompt_tokens: How many of them are its prompt.

        Returns:
            Tokens by which the sequence grew.
        """
        before = sequence.length
        while self.boundary(sequence.length) < len(tokens):
            key = self.next_key(sequence, tokens, prompt_tokens)
            if key is None or key not in self.allocator:
                break
            if sequence.length == 0 and not self._take_sinks(sequence, tokens, prompt_tokens):
                break
            page = self.allocator.find(key)
            assert page is not None  # noqa: S101 - it has the key
            sequence.length = self.boundary(sequence.length)
            sequence.pages.append(page)
            sequence.keys.append(key)
        return sequence.length - before

    def publish(self, sequence: PagedSequence, tokens: Sequence[int], prompt_tokens: int) -> None:
        """Let other sequences find the full pages of this one.

        Args:
            sequence: A sequence.
            tokens: Its tokens.
            prompt_tokens: How many of them are its prompt: they came in slices that end where pages
                end, the others one by one.
        """
        full = num_pages(sequence.length, self.layers[0].config)
        if full == 0:
            return
        if not sequence.keys and not self._keep_sinks(sequence, tokens, prompt_tokens):
            return
        for index in range(len(sequence.keys) - 1, full):
            key = self._page_key(sequence.keys[-1], index, tokens, prompt_tokens)
            sequence.pages[index] = self.allocator.publish(sequence.pages[index], key)
            sequence.keys.append(key)

    def check(self) -> None:
        """Check that nothing is lost or owned twice, and that pages fit the lengths.

        Raises:
            GearError: `BAD_CACHE_FILE`, naming what is wrong.
        """
        self.allocator.check(sequence.held_pages for sequence in self._open)
        taken = [sequence.slot for sequence in self._open]
        slots = sorted([*taken, *self._free_slots])
        if slots != list(range(len(self.residual_buffers[0]))):
            raise _damaged("a buffer row is lost or has two owners")
        for sequence in self._open:
            if len(sequence.pages) < num_pages(sequence.length, self.layers[0].config):
                raise _damaged(f"the sequence of buffer row {sequence.slot} lacks pages")
        if not all(bool(np.isfinite(rows[taken]).all()) for rows in self.residual_buffers):
            raise _damaged("a residual buffer holds a value that is not finite")

    def save_prefix(self, path: str | Path, tokens: Sequence[int]) -> int:
        """Write the pages that the cache has for the start of a prompt to a safetensors file.

        Returns:
            Tokens that the file holds.

        Raises:
            GearError: `BAD_REQUEST` where the cache has none or no buffer row is free; `DISK_FULL`.
        """
        sequence = self.open()
        if sequence is None:
            raise _no_slot()
        try:
            if not self.extend(sequence, [*tokens, 0], len(tokens)):
                raise GearError(
                    ErrorCode.BAD_REQUEST,
                    f"the cache has no page of these {len(tokens)} tokens",
                    hint=f"generate with them first; a page ends after {self.boundary(0)} tokens",
                )
            for rows in self.residual_buffers:
                rows[sequence.slot, :, :, self.sinks :] = 0
            length = sequence.length
            content = cache_file.CacheContent(
                lengths=np.array([length], np.int32),
                token_ids=np.array([tokens[:length]], np.int32),
                pages=[pool[sequence.pages] for pool in self.page_pools],
                residual_buffers=[rows[[sequence.slot]] for rows in self.residual_buffers],
            )
            cache_file.write(Path(path), content, self.layers, kind=cache_file.PREFIX)
            return length
        finally:
            self.close(sequence)

    def load_prefix(self, path: str | Path) -> list[int]:
        """Take the pages of a file into the cache, for sequences that start with its tokens.

        Returns:
            The tokens.

        Raises:
            GearError: `MISSING_FILE`; `BAD_CACHE_FILE` where it is damaged or no prefix;
                `LAYOUT_MISMATCH` where another layout or config wrote it; `CONTEXT_EXCEEDED` where
                too few pages are free; `BAD_REQUEST` where no buffer row is free.
        """
        content = cache_file.read(Path(path), self.layers, kind=cache_file.PREFIX)
        if len(content.lengths) != 1 or num_pages(content.lengths[0], self.layers[0].config) == 0:
            raise _damaged(f"{path} does not hold one prefix")
        tokens: list[int] = content.token_ids[0].tolist()
        sequence = self.open()
        if sequence is None:
            raise _no_slot()
        try:
            if self.pages_for(len(tokens)) > self.allocator.available or not self.reserve(
                sequence, len(tokens)
            ):
                raise GearError(
                    ErrorCode.CONTEXT_EXCEEDED,
                    f"{path} holds {len(tokens)} tokens, the cache has no room for them",
                    hint="raise max_cache_bytes, or load it before the requests",
                )
            sequence.length = len(tokens)
            for index in range(len(self.layers)):
                self.page_pools[index][sequence.pages] = content.pages[index]
                self.residual_buffers[index][sequence.slot] = content.residual_buffers[index][0]
            self.publish(sequence, tokens, len(tokens))
        finally:
            self.close(sequence)
        return tokens

    def _take_sinks(
        self, sequence: PagedSequence, tokens: Sequence[int], prompt_tokens: int
    ) -> bool:
        key = self._sink_key(tokens, prompt_tokens)
        if self.sinks > 0:
            sequence.sink_page = self.allocator.find(key)
            if sequence.sink_page is None:
                return False
            for pool, rows in zip(self.page_pools, self.residual_buffers, strict=True):
                sink_rows = rows[sequence.slot, :, :, : self.sinks]
                words = pool[sequence.sink_page].view(rows.dtype)
                sink_rows[:] = words[:, : sink_rows[0].size].reshape(sink_rows.shape)
        sequence.keys = [key]
        return True

    def _keep_sinks(
        self, sequence: PagedSequence, tokens: Sequence[int], prompt_tokens: int
    ) -> bool:
        key = self._sink_key(tokens, prompt_tokens)
        if self.sinks > 0:
            sequence.sink_page = self.allocator.find(key)
            if sequence.sink_page is None:
                page = self.allocator.allocate() if self._sinks_fit else None
                if page is None:
                    return False
                for pool, rows in zip(self.page_pools, self.residual_buffers, strict=True):
                    sink_rows = rows[sequence.slot, :, :, : self.sinks]
                    words = pool[page].view(rows.dtype)
                    words[:, : sink_rows[0].size] = sink_rows.reshape(len(sink_rows), -1)
                sequence.sink_page = self.allocator.publish(page, key)
        sequence.keys = [key]
        return True

    @property
    def _sinks_fit(self) -> bool:
        """Whether the sink rows of every layer fit one of its pages."""
        share = self.sinks / (self.sinks + self.chunk)
        return all(buffer_bytes([layer]) * share <= page_bytes(layer) for layer in self.layers)

    def _sink_key(self, tokens: Sequence[int], prompt_tokens: int) -> bytes:
        # The first slice reaches to the first page's end, and kernels depend on its size.
        return _key(b"", tokens[: self.sinks], min(prompt_tokens, self.boundary(0)))

    def _page_key(
        self, parent: bytes, index: int, tokens: Sequence[int], prompt_tokens: int
    ) -> bytes:
        start = self.sinks + index * self.chunk
        end = start + self.chunk
        return _key(parent, tokens[start:end], min(max(prompt_tokens - start, 0), self.chunk))


def _key(parent: bytes, tokens: Sequence[int], prompt_tokens: int) -> bytes:
    content = np.array([prompt_tokens, *tokens], np.int64).tobytes()
    return hashlib.blake2b(parent + content, digest_size=16).digest()


def _no_slot() -> GearError:
    return GearError(
        ErrorCode.BAD_REQUEST,
        "every buffer row of the cache is taken",
        hint="wait for a sequence to end, or allow more of them",
    )


def _damaged(fault: str) -> GearError:
    return GearError(
        ErrorCode.BAD_CACHE_FILE,
        f"the cache is damaged: {fault}",
        hint="this is a defect of gear_trt: restart, and report it with this message",
    )
