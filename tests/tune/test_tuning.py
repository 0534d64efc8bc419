import pytest
from transformers import DynamicCache

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.candidate import Decoder, exact, gear
from gear_trt.eval.divergence import Yardstick
from gear_trt.eval.key_scales import KeyScales
from gear_trt.spec import CompressionConfig, ModelConfig, bits_per_element
from gear_trt.torch import measure_key_scales
from gear_trt.tune.options import layer_options, side_options
from gear_trt.tune.probe import probe
from gear_trt.tune.text import SEQUENCES, write_tokens
from tests.torch.networks import network, tokens
from tests.tune.conftest import CONTEXT, make_tuner

HEAD_DIM = 32
BUDGETS = (2.8, 3.6, 4.7)


def judged(config):
    """KL divergence of a config with key scales on the text of the tuner."""
    model = network("llama", num_hidden_layers=3)
    scales = measure_key_scales(model, config)
    yardstick = Yardstick(Decoder(model, exact()), tokens(2, CONTEXT + 1).numpy())
    return yardstick.judge(Decoder(model, gear("it", config, model.config, scales))).kl.mean


@pytest.mark.parametrize("bits", BUDGETS)
def test_a_budget_is_kept_and_most_of_it_used(tuner, bits):
    tuning = tuner.within_bits(bits)
    spent = [bits_per_element(config, HEAD_DIM) for config in tuning.layers]
    assert tuning.bits_per_element == pytest.approx(sum(spent) / len(spent))
    assert bits - 0.3 < tuning.bits_per_element <= bits


def test_divergence_is_that_of_the_config_it_gives(tuner):
    tuning = tuner.within_bits(3.6)
    assert tuning.kl.mean == pytest.approx(judged(tuning.config), rel=1e-6)


def test_layers_nearly_add_up(tuner):
    for bits in BUDGETS:
        tuning = tuner.within_bits(bits)
        assert tuning.kl.mean == pytest.approx(tuning.expected_kl, rel=0.5)


def test_no_uniform_config_of_the_same_size_loses_clearly_less(tuner):
    base = CompressionConfig.preset("k4v4")
    for option in list(layer_options())[:16:5]:
        config = option.config(base)
        tuning = tuner.within_bits(bits_per_element(config, HEAD_DIM))
        if tuning.config != ModelConfig(config):
            assert tuning.kl.mean < 1.1 * judged(ModelConfig(config)), option


def test_the_smallest_config_below_a_divergence_is_found(tuner):
    limit = 1.5 * tuner.within_bits(3.6).kl.mean
    tuning = tuner.below_kl(limit)
    assert tuning.kl.mean <= limit
    assert tuning.bits_per_element <= 3.6


def test_what_cannot_be_reached_is_refused(tuner):
    with pytest.raises(GearError, match=r"reaches 1\.5 bits") as refused:
        tuner.within_bits(1.5)
    assert refused.value.code is ErrorCode.BAD_REQUEST
    assert "2.5" in refused.value.hint
    with pytest.raises(GearError, match="reaches a KL divergence of 1e-30"):
        tuner.below_kl(1e-30)


def test_two_runs_choose_alike(tuner):
    stages = []
    other = make_tuner(lambda stage, _, done: stages.append((stage, done)))
    assert other.within_bits(3.6) == tuner.within_bits(3.6)
    assert list(dict.fromkeys(stage for stage, _ in stages)) == [
        "uncompressed",
        "attention",
        "sensitivity",
        "verifying",
    ]
    assert sorted(done for _, done in stages) == [done for _, done in stages]


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_windows_and_soft_caps_are_probed(family):
    model = network(family)
    base = CompressionConfig.preset("k4v4")
    options = [option for option in side_options() if option.variant == 0]
    errors = probe(model, tokens(2, 160), base, options, KeyScales(model), lambda *_: None)
    assert len(errors) == len(DynamicCache(config=model.config).layers)
    for layer in errors:
        for side in ("key", "value"):
            by_bits = [layer[option] for option in options if option.side == side]
            assert by_bits == sorted(by_bits, reverse=True)
            assert by_bits[-1] > 0


def test_the_model_writes_the_same_text_twice():
    model = network("llama")
    first = write_tokens(model, 20)
    assert first.shape == (SEQUENCES, 21)
    assert (first == write_tokens(model, 20)).all()
    assert (first[0] != first[1]).any()
