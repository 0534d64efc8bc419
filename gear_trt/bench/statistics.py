"""What is said of a series of times: median, minimum, spread, ratios that drift leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Summary:
    """A series of times, in their own unit.

    Attributes:
        median: The middle one.
        minimum: The smallest one: the machine undisturbed.
        mad: Median absolute deviation from the median.
        rounds: How many.
    """

    median: float
    minimum: float
    mad: float
    rounds: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Summary:
        """Summarize one value per round."""
        middle = median(times)
        deviations = [abs(time - middle) for time in times]
        return cls(middle, min(times), median(deviations), len(times))


def speedup(times: Sequence[float], baseline: Sequence[float]) -> float:
    """How many times faster than the baseline: the ratio of each round, then the median.

    The two are measured in turns, so a machine that slows down slows both of a round.
    """
    return median(base / time for time, base in zip(times, baseline, strict=True))


def median_difference(times: Sequence[float], base: Sequence[float]) -> float:
    """Median of each round's difference."""
    return median(time - zero for time, zero in zip(times, base, strict=True))
