"""Scores against their definitions, the protocol, and real caches of tiny models."""

import math

import numpy as np
import pytest
import torch

from gear_trt.eval import candidate
from gear_trt.eval.divergence import BLOCK, UNSCORED, Estimate, Yardstick
from gear_trt.eval.judge import judge
from gear_trt.eval.steps import SLICE
from gear_trt.spec import CompressionConfig, ModelConfig, bits_per_element
from gear_trt.spec.model_config import LayerRule
from tests.eval.models import subject
from tests.torch.networks import SUPPORTED, tokens

VOCABULARY, LENGTH = 7, UNSCORED + BLOCK + 10


class Table:
    """Logits that depend on position and sequence only, and a log of how it was fed."""

    def __init__(self, logits_BTV):
        self.logits_BTV = logits_BTV
        self.calls = []

    def reset(self):
        self.calls.append("reset")
        self.start = 0

    def step(self, tokens_BS):
        count = tokens_BS.shape[1]
        self.calls.append(count)
        self.start += count
        return self.logits_BTV[:, self.start - count : self.start]

    cache_bytes = None


@pytest.fixture
def tables():
    rng = torch.Generator().manual_seed(0)
    exact, noise = (torch.randn(2, LENGTH, VOCABULARY, generator=rng) for _ in range(2))
    return Table(exact), Table(exact + 0.3 * noise)


def ids():
    return np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH + 1))


def test_scores_are_their_definitions(tables):
    exact, other = tables
    scores = Yardstick(exact, ids()).judge(other)
    log_p, log_q = (
        table.logits_BTV.double().log_softmax(-1)[:, UNSCORED:].numpy() for table in tables
    )
    kl_BT = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    np.testing.assert_allclose(scores.divergence_BT, kl_BT, atol=1e-6)
    assert scores.kl.mean == pytest.approx(kl_BT.mean(), rel=1e-5)
    assert scores.top1.mean == (log_p.argmax(-1) == log_q.argmax(-1)).mean()
    target = ids()[:, UNSCORED + 1 :, None]
    nll_p, nll_q = (-np.take_along_axis(log, target, -1).mean() for log in (log_p, log_q))
    assert scores.exact_perplexity == pytest.approx(math.exp(nll_p), rel=1e-5)
    assert scores.perplexity_ratio.mean == pytest.approx(math.exp(nll_q - nll_p), rel=1e-5)


def test_both_are_fed_the_same_short_slices_over_an_empty_cache(tables):
    exact, other = tables
    Yardstick(exact, ids()).judge(other)
    assert exact.calls == other.calls
    assert exact.calls[0] == "reset"
    assert exact.calls[1:] == [SLICE] * (LENGTH // SLICE) + [LENGTH % SLICE]
    assert math.gcd(SLICE, 64) < SLICE, "pages would fill at one phase of a slice only"


def test_a_confidence_interval_is_that_of_blocks():
    rng = np.random.default_rng(0)
    level = rng.standard_normal((4, 20)).repeat(BLOCK, axis=1)  # equal inside of a block
    got = Estimate.of(level)
    assert got.mean == pytest.approx(level.mean())
    assert got.error == pytest.approx(1.96 * level[:, ::BLOCK].std(ddof=1) / math.sqrt(80))


def test_one_block_gives_no_confidence():
    assert math.isnan(Estimate.of(np.ones((1, BLOCK))).error)


def test_too_short_a_text_is_refused(tables):
    with pytest.raises(ValueError, match="none to score"):
        Yardstick(tables[0], ids()[:, : UNSCORED + 1])


def test_more_bits_diverge_less_and_rows_say_what_they_cost():
    tiny = subject()
    caches = [
        candidate.gear(name, ModelConfig(CompressionConfig.preset(name)), tiny.model.config)
        for name in ("exact", "k4v4", "k2v2")
    ]
    stages = []
    rows = list(
        judge(
            tiny,
            caches,
            tokens(2, 201).numpy(),
            lambda *stage: stages.append(stage),
            text_name="noise",
        )
    )
    names = ["exact", "k4v4, keys unscaled", "k2v2, keys unscaled"]
    assert [row.candidate for row in rows] == names
    exact, four, two = rows
    assert exact.kl < 1e-6 < four.kl < two.kl
    (large,) = judge(
        tiny,
        [
            candidate.gear(
                "128", ModelConfig(CompressionConfig.preset("k4v4", chunk=128)), tiny.model.config
            )
        ],
        tokens(2, 201).numpy(),
        lambda *_: None,
        text_name="noise",
    )
    assert large.tokens == 2 * (200 - 128), "the first page is not full before"
    assert exact.top1 == 1
    assert four.bits_per_element == bits_per_element(CompressionConfig.preset("k4v4"), 32)
    elements = 2 * 2 * 2 * 32
    assert four.bytes_per_token == pytest.approx(four.bits_per_element * elements / 8)
    assert four.fp16_bytes_per_token == 2 * elements
    assert four.cache_bytes_per_token > four.bytes_per_token, "buffers are counted"
    assert (four.tokens, four.sequences, four.context) == (2 * (200 - UNSCORED), 2, 200)
    assert [stage[0] for stage in stages] == ["uncompressed", *(row.candidate for row in rows)]


@pytest.mark.parametrize("family", SUPPORTED)
def test_exact_pages_do_not_diverge(family):
    """Sliding windows and soft caps included: the yardstick is the model itself."""
    tiny = subject(family)
    exact = candidate.gear(
        "exact", ModelConfig(CompressionConfig.preset("exact")), tiny.model.config
    )
    (row,) = judge(tiny, [exact], tokens(2, 201).numpy(), lambda *_: None, text_name="noise")
    assert abs(row.kl) < 1e-6


def test_layers_with_configs_of_their_own():
    tiny = subject()
    rules = [LayerRule.of("1", {"bits": 8}, "test")]
    compression = ModelConfig.of(CompressionConfig.preset("k2v2"), rules)
    mixed = candidate.gear("mixed", compression, tiny.model.config)
    two, eight = (
        bits_per_element(CompressionConfig.preset("k2v2", key_bits=bits, value_bits=bits), 32)
        for bits in (2, 8)
    )
    assert mixed.bits_per_element == (two + eight) / 2
    (row,) = judge(tiny, [mixed], tokens(1, 201).numpy(), lambda *_: None, text_name="noise")
    assert row.config["key_bits"] == 2
    assert row.layer_configs["1"]["key_bits"] == 8
