"""Keys, values and queries to time on, and what exact attention makes of them.

Synthetic, but no white noise: channels of keys differ in mean and scale as those of real models do,
and scores have standard deviation 1. The error figures made from them rank caches; what a cache
costs a real model is measured by `benchmarks.quality`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gear_trt.bench.grid import Point

FloatArray = NDArray[np.float32]

SCORE_DEVIATION = 1.0
CHANNEL_MEAN_DEVIATION = 1.0
CHANNEL_SCALE_DEVIATION = 0.5
"""Of the logarithm of a key channel's scale."""
JUDGED_QUERIES = 64
"""New tokens per sequence whose outputs are compared with exact attention, at most."""


@dataclass(frozen=True)
class Tokens:
    """Input of one call and its past.

    Attributes:
        query_BSND: [B, S, N, D] float32: queries of the new tokens.
        keys_BTHD: [B, T + S, H, D] float32: the past, then the new tokens.
        values_BTHD: Likewise.
        context: T.
    """

    query_BSND: FloatArray
    keys_BTHD: FloatArray
    values_BTHD: FloatArray
    context: int

    @property
    def past(self) -> tuple[FloatArray, FloatArray]:
        """Keys and values [B, T, H, D] that the cache holds before the call."""
        return self.keys_BTHD[:, : self.context], self.values_BTHD[:, : self.context]

    @property
    def new(self) -> tuple[FloatArray, FloatArray]:
        """Keys and values [B, S, H, D] of the new tokens."""
        return self.keys_BTHD[:, self.context :], self.values_BTHD[:, self.context :]


def make_tokens(point: Point, *, seed: int = 0) -> Tokens:
    """Draw the tokens of a point; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)
    heads = point.heads
    shape = (point.batch, point.tokens, heads.num_kv_heads, heads.head_dim)
    means_HD = CHANNEL_MEAN_DEVIATION * _normal(rng, shape[2:])
    scales_HD = np.exp(CHANNEL_SCALE_DEVIATION * _normal(rng, shape[2:]))
    query_BSND = _normal(rng, (point.batch, point.new_tokens, heads.num_heads, heads.head_dim))
    query_BSND *= SCORE_DEVIATION / np.sqrt(np.square(scales_HD).mean())
    keys_BTHD = _normal(rng, shape)
    keys_BTHD *= scales_HD
    keys_BTHD += means_HD
    return Tokens(query_BSND, keys_BTHD, _normal(rng, shape), point.context)


class Judge:
    """Compares outputs with exact attention over the same tokens.

    Args:
        tokens: What the candidates are given.
    """

    def __init__(self, tokens: Tokens) -> None:
        new = tokens.query_BSND.shape[1]
        self._rows = np.unique(np.linspace(0, new - 1, min(new, JUDGED_QUERIES)).astype(int))
        self._exact = exact_attention(tokens, self._rows).astype(np.float64)

    def error(self, output_BSND: NDArray[np.floating]) -> float:
        """Return the normalized mean squared error of [B, S, N, D] outputs."""
        difference = output_BSND[:, self._rows].astype(np.float64) - self._exact
        return float(np.square(difference).sum() / np.square(self._exact).sum())


def exact_attention(tokens: Tokens, rows: NDArray[np.intp]) -> FloatArray:
    """Causal FP32 attention of some of the new tokens.

    Args:
        tokens: Queries, keys and values.
        rows: Which of the S new tokens.

    Returns:
        [B, len(rows), N, D] float32.
    """
    query_BRND = tokens.query_BSND[:, rows]
    output_BRND = np.empty_like(query_BRND)
    head_dim = query_BRND.shape[-1]
    group = query_BRND.shape[2] // tokens.keys_BTHD.shape[2]
    is_hidden_RT = np.arange(tokens.keys_BTHD.shape[1]) > tokens.context + rows[:, None]
    for sequence, query_RND in enumerate(query_BRND):
        for head in range(query_RND.shape[1]):
            keys_TD = tokens.keys_BTHD[sequence, :, head // group]
            scores_RT = query_RND[:, head] @ keys_TD.T * np.float32(head_dim**-0.5)
            scores_RT[is_hidden_RT] = -np.inf
            weights_RT = np.exp(scores_RT - scores_RT.max(axis=1, keepdims=True))
            weights_RT /= weights_RT.sum(axis=1, keepdims=True)
            values_TD = tokens.values_BTHD[sequence, :, head // group]
            output_BRND[sequence, :, head] = weights_RT @ values_TD
    return output_BRND


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return rng.standard_normal(shape, dtype=np.float32)
