"""Do presets keep their order at head_dim 128? Attention errors on caches made to look real.

No packaged model has heads of 128 channels, so this judges configs on synthetic keys, values and
queries. Squared errors of attention rank configs of one cache; they are no divergence of a model.

    python -m benchmarks.synthetic [--tokens 2048] [--heads 4] [--configs k4v4 k3v2+chunk=128]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.records import append_rows
from gear_trt.bench.grid import parse_config
from gear_trt.spec import PRESETS, CompressionConfig, bits_per_element
from gear_trt.torch.padding import NewTokens
from gear_trt.tune.probe import ProbeLayer

HEAD_DIM = 128
GROUP = 4
"""Query heads per KV head."""
ROPE_BASE = 10_000.0
SINKS = 2
SINK_KEY, SINK_VALUE = 10.0, 0.05
"""Scores of sink tokens above those of others, and how small their values are."""
MEMORY = 0.8
"""Correlation of a token with the one before it."""
CHANNEL_MEAN, CHANNEL_SCALE = 2.0, 0.6
"""Persistent means of key channels, heavy-tailed; deviation of the logarithm of their scales."""
SCORE_DEVIATION = 1.5

FloatArray = NDArray[np.float32]


def make_cache(
    tokens: int, heads: int, seed: int = 0, head_dim: int = HEAD_DIM
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Make what attention of a decoder sees.

    Keys have channels with large means and unequal scales, neighbours are alike, RoPE turns both
    keys and queries, and the first tokens draw attention and carry small values.

    Args:
        tokens: T.
        heads: H, KV heads.
        seed: Of the generator.
        head_dim: D.

    Returns:
        Queries [1, T, N, D], keys and values [1, T, H, D] float32; N = `GROUP` · H.
    """
    rng = np.random.default_rng(seed)
    scales_HD = np.exp(CHANNEL_SCALE * rng.normal(size=(heads, head_dim)))
    means_HD = CHANNEL_MEAN * rng.standard_t(3, size=(heads, head_dim))
    keys_THD = means_HD + scales_HD * _correlated(rng, (tokens, heads, head_dim))
    queries_THGD = rng.normal(size=(1, heads, GROUP, head_dim)) + _correlated(
        rng, (tokens, heads, GROUP, head_dim)
    )
    values_THD = _correlated(rng, (tokens, heads, head_dim))
    values_THD[:SINKS] *= SINK_VALUE
    queries_TND = _rope(queries_THGD.reshape(tokens, heads * GROUP, head_dim))
    keys_THD = _rope(keys_THD)
    _scale_scores(queries_TND, keys_THD)
    _draw_attention(queries_TND, keys_THD)
    arrays = (queries_TND, keys_THD, values_THD)
    queries, keys, values = (x[None].astype(np.float32) for x in arrays)
    return queries, keys, values


def attention_errors(
    configs: dict[str, CompressionConfig], cache: tuple[FloatArray, FloatArray, FloatArray]
) -> dict[str, float]:
    """Return the relative squared error of attention over each config's pages."""
    query, key, value = map(torch.from_numpy, cache)
    layer: ProbeLayer[str] = ProbeLayer(0, 0, configs, dict.fromkeys(configs), lambda: None)
    layer.lazy_initialization(key.transpose(1, 2), value.transpose(1, 2))
    new = NewTokens(past=(0,), counts=(key.shape[1],), order=None)
    layer.attend(query, key, value, new, scale=key.shape[3] ** -0.5, softcap=0.0)
    return layer.errors


def _correlated(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Noise of deviation 1 whose neighbours along the first axis have correlation `MEMORY`."""
    x = rng.normal(size=shape)
    for t in range(1, shape[0]):
        x[t] = MEMORY * x[t - 1] + np.sqrt(1 - MEMORY**2) * x[t]
    return x


def _rope(x_THD: NDArray[np.float64]) -> NDArray[np.float64]:
    tokens, _, head_dim = x_THD.shape
    half = head_dim // 2
    angles_TD = np.arange(tokens)[:, None] * ROPE_BASE ** (-np.arange(half) / half)
    cos, sin = np.cos(angles_TD)[:, None], np.sin(angles_TD)[:, None]
    low, high = x_THD[..., :half], x_THD[..., half:]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _scale_scores(queries_TND: NDArray[np.float64], keys_THD: NDArray[np.float64]) -> None:
    for n in range(queries_TND.shape[1]):
        scores = queries_TND[-256:, n] @ keys_THD[:, n // GROUP].T / np.sqrt(keys_THD.shape[2])
        queries_TND[:, n] *= SCORE_DEVIATION / scores.std()


def _draw_attention(queries_TND: NDArray[np.float64], keys_THD: NDArray[np.float64]) -> None:
    """Make the first keys point where the queries of their head do on average."""
    for head in range(keys_THD.shape[1]):
        mean_D = queries_TND[:, head * GROUP : (head + 1) * GROUP].mean(axis=(0, 1))
        keys_THD[:SINKS, head] = SINK_KEY * np.sqrt(len(mean_D)) * mean_D / (mean_D @ mean_D)


def main() -> None:
    """Judge configs, print a table and record the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--configs", nargs="+", default=[p for p in PRESETS if p != "exact"])
    arguments = parser.parse_args()
    configs = {name: parse_config(name).config for name in arguments.configs}
    errors = attention_errors(configs, make_cache(arguments.tokens, arguments.heads))
    rows = [
        {
            "benchmark": "synthetic",
            "head_dim": HEAD_DIM,
            "tokens": arguments.tokens,
            "heads": arguments.heads,
            "candidate": name,
            "config": config.model_dump(),
            "bits_per_element": bits_per_element(config, HEAD_DIM),
            "attention_error": errors[name],
        }
        for name, config in configs.items()
    ]
    table = Table("config", "bits", "attention error")
    for row in sorted(rows, key=lambda row: -float(str(row["bits_per_element"]))):
        table.add_row(
            str(row["candidate"]), f"{row['bits_per_element']:.2f}", f"{row['attention_error']:.2e}"
        )
    Console().print(table)
    append_rows("synthetic", rows)


if __name__ == "__main__":
    main()
