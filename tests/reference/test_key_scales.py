"""Scales of key channels: scores stay what they are, and their errors fall."""

import numpy as np
import pytest

from gear_trt.reference.key_scales import key_energy, key_scales, query_energy, sequence_scales
from gear_trt.reference.page import compress_page, decompress_page
from gear_trt.spec import CompressionConfig

TOKENS, HEADS, KV_HEADS, HEAD_DIM, GROUP = 128, 6, 2, 64, 32


def tensors(seed=0):
    """Queries [N, T, D] and keys [H, T, D] whose channels differ in size, as those of models do."""
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(HEADS, TOKENS, HEAD_DIM)) * rng.lognormal(0, 1, HEAD_DIM)
    keys = rng.normal(size=(KV_HEADS, TOKENS, HEAD_DIM)) * rng.lognormal(0, 1, HEAD_DIM)
    return queries.astype(np.float32), (keys + 20 * rng.normal(size=HEAD_DIM)).astype(np.float32)


def scales_of(queries, keys):
    return key_scales(query_energy(queries, KV_HEADS), key_energy(keys, GROUP))


def score_error(queries, keys, scales, config):
    """Squared error of q·k over compressed pages of scaled keys, per KV head."""
    errors = []
    for head in range(KV_HEADS):
        scaled = (keys[head] * scales[head]).astype(np.float16)
        page = compress_page(scaled, np.zeros_like(scaled), config)
        held = decompress_page(page, config, HEAD_DIM)[0] / scales[head]
        group = queries.reshape(KV_HEADS, -1, HEAD_DIM)[head]
        errors.append(((group @ (held - keys[head]).T) ** 2).mean())
    return np.array(errors)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_scores_of_compressed_keys_err_less(bits):
    queries, keys = tensors()
    config = CompressionConfig(key_bits=bits, value_bits=4, chunk=TOKENS)
    ones = np.ones((KV_HEADS, HEAD_DIM), np.float32)
    plain = score_error(queries, keys, ones, config)
    scaled = score_error(queries, keys, scales_of(queries, keys), config)
    assert (scaled < 0.6 * plain).all()


def test_no_other_scales_have_a_smaller_product_of_energies():
    queries, keys = tensors()
    query_HD, key_HD = query_energy(queries, KV_HEADS), key_energy(keys, GROUP)

    def product(scales_HD):
        return (scales_HD**2 * key_HD).sum(axis=1) * (query_HD / scales_HD**2).sum(axis=1)

    best = key_scales(query_HD, key_HD).astype(np.float64)
    rng = np.random.default_rng(1)
    for spread in (1e-2, 1e-1, 1):
        assert (product(best * rng.lognormal(0, spread, best.shape)) > product(best)).all()


def test_a_constant_in_a_channel_costs_nothing():
    _, keys = tensors()
    moved = keys + np.float32(100)
    np.testing.assert_allclose(key_energy(moved, GROUP), key_energy(keys, GROUP), rtol=1e-2)


def test_scales_have_a_geometric_mean_of_one():
    scales = scales_of(*tensors())
    assert scales.dtype == np.float32
    np.testing.assert_allclose(np.log(scales).mean(axis=1), 0, atol=1e-6)


@pytest.mark.parametrize("which", ["queries", "keys", "both"])
def test_heads_without_any_energy(which):
    queries, keys = tensors()
    queries = queries * (which == "keys")
    keys = keys * (which == "queries")
    scales = scales_of(queries, keys)
    assert np.isfinite(scales).all() and (scales > 0).all()
    if which == "both":
        np.testing.assert_array_equal(scales, 1)


def test_a_channel_without_energy_stays_within_bounds():
    queries, keys = tensors()
    queries[..., 3] = 0
    keys[..., 5] = 0
    scales = scales_of(queries, keys)
    assert (scales > 1e-3).all() and (scales < 1e3).all()


CONFIG = CompressionConfig(key_bits=4, value_bits=4, group_size=GROUP, sinks=4)


def test_sinks_do_not_count():
    queries, keys = tensors()
    expected = sequence_scales(queries, keys, CONFIG)
    queries[:, : CONFIG.sinks] *= 1000
    keys[:, : CONFIG.sinks] *= 1000
    np.testing.assert_array_equal(sequence_scales(queries, keys, CONFIG), expected)
    np.testing.assert_array_equal(
        expected, scales_of(queries[:, CONFIG.sinks :], keys[:, CONFIG.sinks :])
    )


@pytest.mark.parametrize("tokens", [0, 1, GROUP + 3])
def test_too_few_tokens(tokens):
    queries, keys = tensors()
    assert sequence_scales(queries[:, :tokens], keys[:, :tokens], CONFIG) is None


@pytest.mark.parametrize("changes", [{"rotate_keys": 0}, {"key_bits": 16, "rotate_keys": 0}])
def test_keys_of_which_scales_change_nothing(changes):
    config = CompressionConfig(**{**CONFIG.model_dump(), **changes})
    assert sequence_scales(*tensors(), config) is None
