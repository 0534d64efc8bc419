"""The choice itself: one option per layer, least loss for the bytes, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Choice:
    """What one option of a layer costs and loses.

    Attributes:
        cost: Bytes, positive.
        loss: Expected KL divergence.
    """

    cost: int
    loss: float


class Frontier:
    """The least loss for every budget, exactly.

    Args:
        layers: Choices of every layer.
    """

    def __init__(self, layers: Sequence[Sequence[Choice]]) -> None:
        self._layers = layers
        self._unit = reduce(math.gcd, (choice.cost for layer in layers for choice in layer))
        top = sum(max(choice.cost for choice in layer) for layer in layers) // self._unit
        least = np.zeros(top + 1)
        self._picks: list[NDArray[np.int32]] = []
        for layer in layers:
            least, picks = self._add(least, layer)
            self._picks.append(picks)
        self._least = least

    def within(self, budget: float) -> list[int] | None:
        """Return the index of each layer's choice of least loss within a budget of bytes.

        None where even the cheapest choices cost more.
        """
        most = min(math.floor(budget / self._unit), len(self._least) - 1)
        return self._trace(most) if most >= 0 and math.isfinite(self._least[most]) else None

    def below(self, loss: float) -> list[int] | None:
        """Return the cheapest choices whose loss is at most `loss`, or None where none is."""
        enough = np.flatnonzero(self._least <= loss)
        return self._trace(int(enough[0])) if len(enough) else None

    def _add(
        self, least: NDArray[np.float64], layer: Sequence[Choice]
    ) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Return the least loss by budget with one layer more, and which choice reaches it."""
        best = np.full_like(least, math.inf)
        picks = np.zeros(len(least), np.int32)
        for index, choice in enumerate(layer):
            units = choice.cost // self._unit
            total = np.full_like(least, math.inf)
            total[units:] = least[: len(least) - units] + choice.loss
            is_better = total < best
            best[is_better] = total[is_better]
            picks[is_better] = index
        return best, picks

    def _trace(self, budget: int) -> list[int]:
        chosen = []
        for layer, picks in zip(reversed(self._layers), reversed(self._picks), strict=True):
            chosen.append(int(picks[budget]))
            budget -= layer[chosen[-1]].cost // self._unit
        return chosen[::-1]
