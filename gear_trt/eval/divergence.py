"""How far a cache moves the model's next-token distributions, beside the uncompressed cache."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gear_trt.eval.steps import SLICE, Steps, feed

BLOCK = 64
"""Consecutive tokens that count as one observation: neighbours are correlated."""
UNSCORED = 64
"""First tokens of a sequence that are not scored, unless a cache leaves more uncompressed."""
CONFIDENCE = 1.96
"""Standard errors on both sides that hold 95 % of a normal distribution."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    Attributes:
        mean: Over all scored tokens.
        error: Half the width of its 95 % confidence interval, from the spread of the means of
            blocks of `BLOCK` tokens.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, values_BT: NDArray[np.floating]) -> Estimate:
        """Estimate the mean of values [B, T] whose neighbours along T are correlated."""
        blocks = np.concatenate(
            [
                np.add.reduceat(row, np.arange(0, len(row), BLOCK))
                / np.diff([*range(0, len(row), BLOCK), len(row)])
                for row in np.asarray(values_BT, np.float64)
            ]
        )
        spread = blocks.std(ddof=1) if len(blocks) > 1 else math.nan
        return cls(float(np.mean(values_BT)), float(CONFIDENCE * spread / math.sqrt(len(blocks))))


@dataclass(frozen=True)
class Scores:
    """One cache beside the uncompressed one, token by token; the first tokens are left out.

    Attributes:
        divergence_BT: KL of the next-token distribution from the uncompressed one's, nats.
        agrees_BT: 1 where both expect the same token most, else 0.
        surprise_BT: How much less likely, in nats, the text's next token is than uncompressed.
        exact_surprise_BT: Negative log-likelihood of the text's next token, uncompressed.
    """

    divergence_BT: FloatArray
    agrees_BT: FloatArray
    surprise_BT: FloatArray
    exact_surprise_BT: FloatArray

    @property
    def kl(self) -> Estimate:
        """Mean KL divergence."""
        return Estimate.of(self.divergence_BT)

    @property
    def top1(self) -> Estimate:
        """Part of the tokens at which both expect the same token most."""
        return Estimate.of(self.agrees_BT)

    @property
    def perplexity_ratio(self) -> Estimate:
        """Perplexity over the uncompressed cache's, paired token by token."""
        log = Estimate.of(self.surprise_BT)
        return Estimate(math.exp(log.mean), math.exp(log.mean) * log.error)

    @property
    def exact_perplexity(self) -> float:
        """Perplexity of the text with the uncompressed cache."""
        return math.exp(self.exact_surprise_BT.mean())


class Yardstick:
    """The uncompressed cache's log-probabilities of a text, computed once and kept on disk.

    Args:
        exact: Decodes over the uncompressed cache.
        tokens_BT: [B, T + 1] token ids; the last column is only a target.
    """

    def __init__(self, exact: Steps, tokens_BT: NDArray[np.int64]) -> None:
        if tokens_BT.shape[1] <= UNSCORED + 1:
            raise ValueError(f"sequences of {tokens_BT.shape[1]} tokens have none to score")
        self.tokens_BT = torch.from_numpy(tokens_BT)
        batch, columns = tokens_BT.shape
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its map
        self._log_probs: NDArray[np.float32] | None = None
        for start, log_probs_BSV in self._slices(exact):
            if self._log_probs is None:
                shape = (batch, columns - 1, log_probs_BSV.shape[2])
                self._log_probs = np.memmap(self._file, np.float32, "w+", shape=shape)
            end = start + log_probs_BSV.shape[1]
            self._log_probs[:, start:end] = log_probs_BSV.numpy()

    def judge(self, other: Steps, *, unscored: int = UNSCORED) -> Scores:
        """Run another cache over the same tokens in the same slices; it is left filled.

        Args:
            other: Decodes over that cache.
            unscored: First tokens of each sequence, while which it compresses nothing.
        """
        parts = [
            _compare(self._exact(start, log_probs.shape[1]), log_probs, self._targets(start, end))
            for start, log_probs in self._slices(other)
            if (end := start + log_probs.shape[1])
        ]
        columns = (torch.cat(column, dim=1)[:, unscored:] for column in zip(*parts, strict=True))
        return Scores(*(column.double().numpy() for column in columns))

    def _exact(self, start: int, count: int) -> torch.Tensor:
        if self._log_probs is None:
            raise RuntimeError("no slice was decoded")
        return torch.from_numpy(np.array(self._log_probs[:, start : start + count]))

    def _targets(self, start: int, end: int) -> torch.Tensor:
        return self.tokens_BT[:, start + 1 : end + 1]

    def _slices(self, decoder: Steps) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the start of every slice and its log-probabilities [B, S, vocab_size]."""
        for start, logits_BSV in feed(decoder, self.tokens_BT[:, :-1], width=SLICE):
            yield start, torch.log_softmax(logits_BSV, dim=-1)


def _compare(
    exact_BSV: torch.Tensor, other_BSV: torch.Tensor, targets_BS: torch.Tensor
) -> Sequence[torch.Tensor]:
    """Return the fields of `Scores` [B, S] for log-probabilities of both."""
    kl = (exact_BSV.exp() * (exact_BSV - other_BSV)).sum(dim=-1)
    agrees = exact_BSV.argmax(dim=-1) == other_BSV.argmax(dim=-1)
    target = targets_BS[..., None]
    exact, other = (logs.gather(-1, target)[..., 0] for logs in (exact_BSV, other_BSV))
    return kl, agrees, exact - other, -exact
