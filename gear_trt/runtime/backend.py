"""What the runtime asks of an inference engine that runs exported graphs."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PREFILL_SLICE = 512
"""Tokens per run of a graph, all sequences together: bounds the memory that a long prompt takes."""


class CacheMemory(Protocol):
    """What a graph reads and updates, as `GearCache` and `PagedCache` hold it.

    The pools and buffers of all layers stay where they are; page table, slots and lengths, each
    with a row per sequence of the next run, may be other arrays for every run.
    """

    page_pools: list[NDArray[np.int32]]
    residual_buffers: list[NDArray[np.generic]]
    page_table: NDArray[np.int32]
    slots: NDArray[np.int32]
    lengths: NDArray[np.int32]


class BoundGraph(Protocol):
    """A graph whose state inputs and outputs are the memory of one cache."""

    def run(
        self, tokens_BS: NDArray[np.int64], new_lengths: NDArray[np.int32]
    ) -> NDArray[np.floating]:
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

    def bind(self, cache: CacheMemory) -> BoundGraph:
        """Give the graph a cache to work on; several caches may share one backend."""
        ...
