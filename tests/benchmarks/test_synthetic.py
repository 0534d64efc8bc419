"""The synthetic caches look as they say, and rank configs."""

import numpy as np
import pytest

from benchmarks.synthetic import GROUP, SINKS, attention_errors, make_cache
from gear_trt.spec import CompressionConfig

TOKENS = 384


@pytest.fixture(scope="module")
def cache():
    return make_cache(TOKENS, heads=1)


def test_first_tokens_draw_attention_and_carry_little(cache):
    queries, keys, values = (x[0] for x in cache)
    scores = queries[TOKENS // 2 :, 0] @ keys[:, 0].T / np.sqrt(keys.shape[2])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    assert queries.shape == (TOKENS, GROUP, 128)
    assert weights[:, :SINKS].sum(axis=1).mean() > 10 * SINKS / TOKENS
    assert np.abs(values[:SINKS]).mean() < 0.1 * np.abs(values[SINKS:]).mean()


def test_neighbours_are_alike(cache):
    values = cache[2][0, SINKS:, 0]
    assert np.corrcoef(values[1:].ravel(), values[:-1].ravel())[0, 1] > 0.7


def test_more_bits_and_fitted_ranges_mean_less_error(cache):
    presets = ("k4v4", "k3v2", "k2v2")
    configs = {name: CompressionConfig.preset(name) for name in presets}
    configs["unfitted"] = CompressionConfig.preset("k2v2", fit_ranges=0)
    errors = attention_errors(configs, cache)
    assert errors["k4v4"] < errors["k3v2"] < errors["k2v2"] < errors["unfitted"]
