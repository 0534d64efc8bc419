"""What the runtime asks of an inference engine that runs exported graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gear_trt.runtime.memory import Memory, StateArray

PREFILL_SLICE = 512
"""Tokens per run of a graph, all sequences together: bounds the memory that a long prompt takes."""


class CacheMemory(Protocol):
    """What a graph reads and updates, as `GearCache` and `PagedCache` hold it.

    The pools and buffers of all layers stay where they are; page table, slots and lengths, each
    with a row per sequence of the next run, may be other arrays for every run.
    """

    page_table: NDArray[np.int32]
    slots: NDArray[np.int32]
    lengths: NDArray[np.int32]

    @property
    def page_pools(self) -> Sequence[StateArray]:
        """Per layer [num_pages, H, page_words] int32."""
        ...

    @property
    def residual_buffers(self) -> Sequence[StateArray]:
        """Per layer [slots, H, 2, sinks + C, D]."""
        ...


class Logits(Protocol):
    """Logits of a step, on the host or on a device until they are looked at; numpy arrays are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, S, vocab_size)."""
        ...

    def __getitem__(self, where: Any, /) -> NDArray[Any]:  # noqa: ANN401 - as numpy's
        """Return [tokens, vocab_size], given an array of rows and one of columns."""
        ...

    def __array__(self) -> NDArray[Any]:
        """Return all of them on the host."""
        ...


class BoundGraph(Protocol):
    """A graph whose state inputs and outputs are the memory of one cache."""

    def run(self, tokens_BS: NDArray[np.int64], new_lengths: NDArray[np.int32]) -> Logits:
        """Run the graph over the new tokens; it appends them to the cache's memory.

        Args:
            tokens_BS: [B, S] int64; columns at and beyond `new_lengths` are padding.
            new_lengths: [B] int32, 0..S.

        Returns:
            [B, S, vocab_size] logits in the graph's own float type.

        Raises:
            GearError: `NON_FINITE_ACTIVATION`. The cache is not usable after an error.
        """
        ...


class Backend(Protocol):
    """A loaded engine: weights and graph, without any cache."""

    @property
    def memory(self) -> Memory:
        """Where the state of its caches must lie."""
        ...

    def bind(self, cache: CacheMemory) -> BoundGraph:
        """Give the graph a cache to work on; several caches may share one backend."""
        ...
