"""What the runtime asks of an inference engine that runs exported graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gear_trt.runtime.memory import Memory, StateArray

PREFILL_SLICE = 512
"""Tokens per run of a graph, all sequences together: bounds the memory that a long prompt takes."""
UNLIMITED = 2**31 - 1
"""A limit where there is none."""


@dataclass(frozen=True)
class Pace:
    """How fast prompts run, for those who let them take turns with sequences that decode (ADR 21).

    Attributes:
        prefill_tokens: Prompt tokens, padding included, that may run between two decode steps.
        seconds_per_token: What one token of a long prompt takes, roughly.
    """

    prefill_tokens: int
    seconds_per_token: float


CPU_PACE = Pace(prefill_tokens=160, seconds_per_token=0.0025)
"""Chosen for SmolLM2-135M on two cores."""
GPU_PACE = Pace(prefill_tokens=512, seconds_per_token=0.0001)
"""Not measured. Up to some hundred tokens take hardly longer than the reading of the weights: one
token in FP16 is 1 FLOP per byte, and GPUs do 150 (A100) to 300 (H100) per byte read. A long prompt
runs page by page, and the step of a page is taken to last some milliseconds."""


@dataclass(frozen=True)
class CacheLimits:
    """The largest cache that a backend works on.

    Attributes:
        num_pages: Pages of each layer's pool.
        slots: Rows of each layer's residual buffer.
        max_pages: Pages of one sequence.
    """

    num_pages: int = UNLIMITED
    slots: int = UNLIMITED
    max_pages: int = UNLIMITED


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
            GearError: `NON_FINITE_ACTIVATION`, `OUT_OF_MEMORY`. The places of the new tokens in the
                cache may hold anything then.
        """
        ...


class Backend(Protocol):
    """A loaded engine: weights and graph, without any cache."""

    @property
    def memory(self) -> Memory:
        """Where the state of its caches must lie."""
        ...

    @property
    def cache_limits(self) -> CacheLimits:
        """The largest cache that `bind` takes."""
        ...

    @property
    def pace(self) -> Pace:
        """How fast prompts run."""
        ...

    def bind(self, cache: CacheMemory) -> BoundGraph:
        """Give the graph a cache to work on; several caches may share one backend."""
        ...
