"""Timing in turns: every round calls every candidate, so that noise hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Timed:
    """Something to time.

    Attributes:
        name: Key of its times.
        call: Takes the index of an independent copy of its memory.
        copies: How many copies there are; a round calls each one once.
    """

    name: str
    call: Callable[[int], object]
    copies: int


def measure(
    candidates: Sequence[Timed], *, rounds: int, advance: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Time all candidates in turns, after warm-up rounds.

    Args:
        candidates: What to time; each round starts with another one, so that none always follows
            the same neighbour.
        rounds: Rounds to keep.
        advance: Called after each round.

    Returns:
        Per candidate one value a round: the median wall time of its calls, in seconds.
    """
    kept: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for turn in range(WARM_UP_ROUNDS + rounds):
        first = turn % len(candidates)
        for candidate in (*candidates[first:], *candidates[:first]):
            seconds = median(_call(candidate, copy) for copy in range(candidate.copies))
            if turn >= WARM_UP_ROUNDS:
                kept[candidate.name].append(seconds)
        advance()
    return kept


def _call(candidate: Timed, copy: int) -> float:
    started = time.perf_counter()
    candidate.call(copy)
    return time.perf_counter() - started
