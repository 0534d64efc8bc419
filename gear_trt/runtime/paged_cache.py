"""One pool of pages and buffer rows for many sequences that come, share, fork and go."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError
from gear_trt.reference.cache import num_pages
from gear_trt.runtime.backend import UNLIMITED, CacheLimits
from gear_trt.runtime.footprint import (
    buffer_bytes,
    buffer_shape,
    fp16_bytes_per_token,
    page_bytes,
    page_shape,
)
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.runtime.memory import HostMemory, Memory, StateArray
from gear_trt.runtime.pages import PageAllocator, damaged
from gear_trt.runtime.token_plan import TokenPlan

log = logging.getLogger(__name__)

IntArray = NDArray[np.int32]


@dataclass(eq=False)
class PagedSequence:
    """What one sequence holds of a `PagedCache`.

    Attributes:
        plan: Its tokens, those to come included, and the steps that compute them.
        slot: Its row of the residual buffers.
        length: Tokens held.
        pages: Page ids in order.
        sink_page: Page that keeps the sink rows for other sequences; None while there is none.
        keys: Key of the sinks, then of each page that is published or was found.
    """

    plan: TokenPlan
    slot: int
    length: int = 0
    pages: list[int] = field(default_factory=list)
    sink_page: int | None = None
    keys: list[bytes] = field(default_factory=list)

    @property
    def held_pages(self) -> list[int]:
        """All page ids, in the order in which they may be evicted."""
        return [*reversed(self.pages), *([] if self.sink_page is None else [self.sink_page])]

    @property
    def is_prefilling(self) -> bool:
        """Whether its next token is the prompt's."""
        return self.plan.is_prefilling(self.length)

    @property
    def is_complete(self) -> bool:
        """Whether all its tokens have run."""
        return self.length == len(self.plan.tokens)

    @property
    def step_tokens(self) -> int:
        """Tokens of its next step."""
        return self.plan.step_end(self.length) - self.length


class PagedCache:
    """Page pools and residual buffers that sequences share.

    A page id means one page in every layer. Pages hold whole chunks and never change, so sequences
    that start with the same tokens hold the same pages (see `TokenPlan`). A sequence that joins at
    a page's end needs nothing else but the sink rows, one that joins at a mark the buffer rows up
    to there: both are kept as they are, in pages of their own.

    Attributes:
        layers: Facts of every layer.
        memory: Where pools and buffers lie; what the host decides is numpy's.
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
        max_pages: Pages that one sequence may have, the one with its sinks not counted.
        memory: Where pools and buffers lie; None means the host's memory.

    Raises:
        GearError: `OUT_OF_MEMORY`.
    """

    def __init__(
        self,
        layers: Sequence[LayerFacts],
        *,
        num_pages: int,
        slots: int,
        max_pages: int = UNLIMITED,
        memory: Memory | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.memory = memory or HostMemory()
        self.page_pools: list[StateArray] = [
            self.memory.zeros((num_pages, *page_shape(layer)), "int32") for layer in self.layers
        ]
        self.residual_buffers: list[StateArray] = [
            self.memory.zeros((slots, *buffer_shape(layer)), layer.config.buffer_dtype)
            for layer in self.layers
        ]
        self.page_table = np.zeros((0, 1), np.int32)
        self.slots = np.zeros(0, np.int32)
        self.lengths = np.zeros(0, np.int32)
        self.allocator = PageAllocator(num_pages)
        self._max_pages = max_pages
        self._free_slots = list(range(slots - 1, -1, -1))
        self._open: set[PagedSequence] = set()
        self._page_bytes = sum(map(page_bytes, self.layers))
        self._buffer_bytes = buffer_bytes(self.layers)

    @classmethod
    def within(
        cls,
        layers: Sequence[LayerFacts],
        *,
        max_bytes: int,
        slots: int,
        limits: CacheLimits | None = None,
        memory: Memory | None = None,
    ) -> Self:
        """Make the largest cache that fits a budget and a backend; what is cut off is logged.

        Args:
            layers: Facts of every layer, in order.
            max_bytes: Bytes of all pools and residual buffers together.
            slots: Sequences that can be open at the same time.
            limits: What the backend takes; None means any cache.
            memory: Where pools and buffers lie; None means the host's memory.

        Raises:
            GearError: `BAD_REQUEST` where not even two pages fit the budget; `OUT_OF_MEMORY`.
        """
        limits = limits or CacheLimits()
        slots = _at_most(limits.slots, slots, "sequences at the same time")
        page, buffers = sum(map(page_bytes, layers)), slots * buffer_bytes(layers)
        pages = (max_bytes - buffers) // page
        if pages < 2:  # one to keep the sinks, one for tokens
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"max_cache_bytes is {max_bytes}: the buffers of {slots} sequences take {buffers}, "
                f"a page {page}",
                hint=f"allow {buffers + 2 * page} bytes or more, or fewer sequences",
            )
        pages = _at_most(limits.num_pages, pages, "pages")
        return cls(layers, num_pages=pages, slots=slots, max_pages=limits.max_pages, memory=memory)

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
        pages = min(self.allocator.num_pages - (self.sinks > 0), self._max_pages)
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
        lengths = [one.length for one in tuple(self._open)]  # other threads may ask
        return fp16_bytes_per_token(self.layers) * sum(lengths)

    def pages_for(self, length: int) -> int:
        """Return the pages that a sequence of `length` tokens has, its sink page included."""
        full = self._full_pages(length)
        return full + (full > 0 and self.sinks > 0)

    def open(self, plan: TokenPlan) -> PagedSequence | None:
        """Return an empty sequence, or None where every buffer row is taken."""
        if not self._free_slots:
            return None
        sequence = PagedSequence(plan, self._free_slots.pop())
        self._open.add(sequence)
        return sequence

    def close(self, sequence: PagedSequence) -> None:
        """Give back all that a sequence holds; its published pages stay cached."""
        self._open.remove(sequence)
        self._free_slots.append(sequence.slot)
        self.allocator.release(sequence.held_pages)

    def fork(self, sequence: PagedSequence, plan: TokenPlan) -> PagedSequence | None:
        """Return a copy of a sequence, or None where every buffer row is taken.

        The pages are shared; only the buffer row is copied.

        Args:
            sequence: A sequence.
            plan: Of the copy; it starts as the sequence's does.
        """
        copy = self.open(plan)
        if copy is None:
            return None
        for page in sequence.held_pages:
            self.allocator.hold(page)
        copy.length, copy.sink_page = sequence.length, sequence.sink_page
        copy.pages, copy.keys = list(sequence.pages), list(sequence.keys)
        self.memory.copy((rows[sequence.slot], rows[copy.slot]) for rows in self.residual_buffers)
        return copy

    def reserve(self, sequence: PagedSequence, *, up_to: int | None = None) -> bool:
        """Give a sequence the pages that it fills.

        Args:
            sequence: A sequence.
            up_to: Tokens for which it needs pages; None means those after its next step.

        Returns:
            False where too few are left; it keeps those it got.
        """
        length = sequence.length + sequence.step_tokens if up_to is None else up_to
        needed = self._full_pages(length)
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

    def next_key(self, sequence: PagedSequence) -> bytes | None:
        """Return the key under which the sequence's next slice will be found.

        Returns:
            None where it ends inside a page, or its pages cannot be shared.
        """
        plan, length = sequence.plan, sequence.length
        keys = self._keys(sequence)
        end = plan.step_end(length)
        if not keys or not sequence.is_prefilling:
            return None
        if end == plan.page_end(length):
            return plan.page_key(keys[-1], length)
        return self._mark_pieces(plan, keys[-1])[-1][0] if end == plan.mark else None

    def extend(self, sequence: PagedSequence) -> int:
        """Go on with what the cache has of a sequence's next tokens, and leave one to run.

        Returns:
            Tokens by which the sequence grew.
        """
        before, plan = sequence.length, sequence.plan
        while (keys := self._keys(sequence)) and plan.page_end(sequence.length) < len(plan.tokens):
            key = plan.page_key(keys[-1], sequence.length)
            if key not in self.allocator or not self._take_sinks(sequence):
                break
            sequence.pages.append(self.allocator.take(key))
            sequence.keys.append(key)
            sequence.length = plan.page_end(sequence.length)
        self._take_mark(sequence)
        return sequence.length - before

    def publish(self, sequence: PagedSequence) -> None:
        """Let other sequences find the full pages of this one, and its rows where it is at a mark.

        Where every page is held there is none to keep the sink rows, and nothing is published.
        """
        full, plan = self._full_pages(sequence.length), sequence.plan
        if full == 0 or not self._keep_sinks(sequence):
            return
        for index in range(len(sequence.keys) - 1, full):
            key = plan.page_key(sequence.keys[-1], self.sinks + index * self.chunk)
            sequence.pages[index] = self.allocator.publish(sequence.pages[index], key)
            sequence.keys.append(key)
        if sequence.length == plan.mark:
            self._keep_mark(sequence)

    def check(self) -> None:
        """Check that nothing is lost or owned twice, and that pages fit the lengths.

        Raises:
            GearError: `BAD_CACHE_FILE`, naming what is wrong.
        """
        self.allocator.check(sequence.held_pages for sequence in self._open)
        taken = [sequence.slot for sequence in self._open]
        slots = sorted([*taken, *self._free_slots])
        if slots != list(range(len(self.residual_buffers[0]))):
            raise damaged("a buffer row is lost or has two owners")
        for sequence in self._open:
            if len(sequence.pages) < self._full_pages(sequence.length):
                raise damaged(f"the sequence of buffer row {sequence.slot} lacks pages")
        in_use = (rows[slot] for rows in self.residual_buffers for slot in taken)
        if not self.memory.all_finite(in_use):
            raise damaged("a residual buffer holds a value that is not finite")

    def _full_pages(self, length: int) -> int:
        return num_pages(length, self.layers[0].config)

    # What a sequence that joins needs beside the pages

    def _keys(self, sequence: PagedSequence) -> list[bytes]:
        """Return the keys of the sinks and of all full pages; none where these have no keys."""
        keys = sequence.keys or [sequence.plan.sink_key()]
        return keys if len(keys) == self._full_pages(sequence.length) + 1 else []

    def _take_sinks(self, sequence: PagedSequence) -> bool:
        """Copy the sink rows that the cache has to a sequence that holds nothing yet."""
        if sequence.keys:
            return True
        key = sequence.plan.sink_key()
        if self.sinks:
            if key not in self.allocator:
                return False
            sequence.sink_page = self.allocator.take(key)
            self._read_rows(sequence.sink_page, sequence.slot, slice(0, self.sinks))
        sequence.keys = [key]
        return True

    def _keep_sinks(self, sequence: PagedSequence) -> bool:
        """Keep the sink rows of a sequence, unless they are there."""
        if sequence.keys:
            return True
        key = sequence.plan.sink_key()
        if self.sinks:
            sequence.sink_page = self._keep_rows(key, sequence.slot, slice(0, self.sinks))
            if sequence.sink_page is None:
                return False
        sequence.keys = [key]
        return True

    def _take_mark(self, sequence: PagedSequence) -> None:
        """Copy the rows up to the mark to a sequence at the end of the page before."""
        plan, length = sequence.plan, sequence.length
        if length == 0 or length != plan.page_start(plan.mark) or not self._keys(sequence):
            return
        pieces = self._mark_pieces(plan, sequence.keys[-1])
        if not all(key in self.allocator for key, _, _ in pieces):
            return
        for key, start, end in pieces:
            page = self.allocator.take(key)
            row = self.sinks - length
            self._read_rows(page, sequence.slot, slice(row + start, row + end))
            self.allocator.release([page])
        sequence.length = plan.mark

    def _keep_mark(self, sequence: PagedSequence) -> None:
        row = self.sinks - sequence.plan.page_start(sequence.length)
        for key, start, end in self._mark_pieces(sequence.plan, sequence.keys[-1]):
            page = self._keep_rows(key, sequence.slot, slice(row + start, row + end))
            if page is not None:
                self.allocator.release([page])  # whoever takes the rows copies them

    def _mark_pieces(self, plan: TokenPlan, parent: bytes) -> list[tuple[bytes, int, int]]:
        """Return key, first position and end of each page of rows up to the mark."""
        pieces = []
        for start in range(plan.page_start(plan.mark), plan.mark, self._rows_per_page):
            end = min(start + self._rows_per_page, plan.mark)
            parent = plan.rows_key(parent, start, end)
            pieces.append((parent, start, end))
        return pieces

    @cached_property
    def _rows_per_page(self) -> int:
        """Buffer rows, K and V, that fit a page of every layer."""
        rows = self.sinks + self.chunk
        return min(page_bytes(layer) * rows // buffer_bytes([layer]) for layer in self.layers)

    def _keep_rows(self, key: bytes, slot: int, rows: slice) -> int | None:
        """Return a page with buffer rows, held once more; None where there is no room."""
        if key in self.allocator:
            return self.allocator.take(key)
        fits = rows.stop - rows.start <= self._rows_per_page
        page = self.allocator.allocate() if fits else None
        if page is None:
            return None
        self.memory.copy(self._row_places(page, slot, rows))
        return self.allocator.publish(page, key)

    def _read_rows(self, page: int, slot: int, rows: slice) -> None:
        self.memory.copy((kept, row) for row, kept in self._row_places(page, slot, rows))

    def _row_places(
        self, page: int, slot: int, rows: slice
    ) -> Iterator[tuple[StateArray, StateArray]]:
        """Yield views [H, 2, rows, D] per layer: of buffer rows, and of a page that keeps them."""
        for pool, buffer in zip(self.page_pools, self.residual_buffers, strict=True):
            in_buffer = buffer[slot, :, :, rows]
            size = math.prod(in_buffer.shape[1:])
            yield in_buffer, pool[page].view(buffer.dtype)[:, :size].reshape(in_buffer.shape)


def _at_most(limit: int, wanted: int, what: str) -> int:
    """Return as many of what is wanted as the engine takes, and log what it does not."""
    if wanted > limit:
        log.warning(
            "the engine takes %d %s, not %d: `gear build --max-batch` makes one that takes more",
            limit,
            what,
            wanted,
        )
    return min(limit, wanted)
