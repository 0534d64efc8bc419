"""Tuning for an engine whose key channels are scaled: every measurement sees the scales."""

import numpy as np
import pytest
import torch

from gear_trt.eval import key_scales
from gear_trt.eval.candidate import Decoder, exact
from gear_trt.eval.divergence import Yardstick
from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.torch import measure_key_scales
from gear_trt.tune.options import layer_options, side_options
from gear_trt.tune.probe import probe
from gear_trt.tune.scales import LayerScales
from gear_trt.tune.sensitivity import measure
from tests.torch.networks import network, tokens
from tests.tune.conftest import make_tuner

BASE = CompressionConfig.preset("k4v4")
GROUPS_OF_32, GROUPS_OF_64 = (BASE.model_copy(update={"group_size": size}) for size in (32, 64))
VALUES_ALONE = BASE.model_copy(update={"key_bits": 16, "rotate_keys": 0})
UNEVEN_LAYER = 1
HEAD_DIM = 32


@pytest.fixture(scope="module")
def model():
    """A model in one of whose layers key channels differ in size, as those of Qwen2.5 do."""
    model = network("llama", num_hidden_layers=3)
    factors = torch.from_numpy(np.random.default_rng(0).lognormal(0, 1.5, HEAD_DIM)).float()
    attention = model.model.layers[UNEVEN_LAYER].self_attn
    with torch.no_grad():
        attention.k_proj.weight.unflatten(0, (-1, HEAD_DIM)).mul_(factors[:, None])
        attention.q_proj.weight.unflatten(0, (-1, HEAD_DIM)).div_(factors[:, None])
    return model


@pytest.fixture(scope="module")
def scales(model):
    return LayerScales(model, [GROUPS_OF_32, GROUPS_OF_64])


@pytest.fixture(scope="module")
def tuners(model):
    return [make_tuner(model=model, scale_keys=scale_keys) for scale_keys in (False, True)]


def test_layers_have_the_scales_that_export_would_measure(model, scales):
    layers = [GROUPS_OF_32, GROUPS_OF_64, VALUES_ALONE]
    special = [(range(index, index + 1), layers[index]) for index in (1, 2)]
    want = measure_key_scales(model, ModelConfig(layers[0], tuple(special)))
    got = scales.of_layers(layers)
    assert got[2] is want[2] is None
    assert all(torch.equal(*pair) for pair in zip(got[:2], want[:2], strict=True))
    assert not torch.equal(scales.of(0, GROUPS_OF_32), scales.of(0, GROUPS_OF_64))


def test_one_pass_per_group_size(model, monkeypatch):
    measured = []

    def counted(model, compression):
        measured.append(compression)
        return measure_key_scales(model, compression)

    monkeypatch.setattr(key_scales, "measure_key_scales", counted)
    configs = [VALUES_ALONE, *(option.config(BASE) for option in layer_options())]
    scales = LayerScales(model, configs)
    assert len(measured) == 2
    assert LayerScales(model, ()).of_layers(configs[:3]) == [None] * 3
    assert scales.of(0, VALUES_ALONE) is None
    assert len(measured) == 2


def test_attention_is_probed_with_scales(model, scales):
    options = [option for option in side_options() if option.variant == 0 and option.bits < 8]
    plain, scaled = (
        probe(model, tokens(2, 160), BASE, options, given, lambda *_: None)[UNEVEN_LAYER]
        for given in (LayerScales(model, ()), scales)
    )
    for option in options:
        if option.side == "key":
            assert scaled[option] < 0.5 * plain[option]
        else:
            assert scaled[option] == plain[option]


def test_layers_alone_are_measured_with_scales(model, scales):
    yardstick = Yardstick(Decoder(model, exact()), tokens(2, 160).numpy())
    plain, scaled = (
        measure(model, yardstick, BASE, given, lambda *_: None)
        for given in (LayerScales(model, ()), scales)
    )
    assert scaled[UNEVEN_LAYER] < 0.8 * plain[UNEVEN_LAYER]


def test_what_is_chosen_is_measured_with_scales(tuners):
    plain, scaled = (tuner.within_bits(3.6) for tuner in tuners)
    assert scaled.kl.mean < 0.8 * plain.kl.mean
    assert scaled.has_key_scales
    assert not plain.has_key_scales


def test_a_layer_whose_keys_scales_mend_needs_fewer_bits(tuners):
    plain, scaled = (tuner.within_bits(3.6).layers[UNEVEN_LAYER] for tuner in tuners)
    assert scaled.key_bits < plain.key_bits


def test_keys_that_are_not_rotated_are_not_scaled(model):
    tuning = make_tuner(model=model, preset="paper-4bit").within_bits(8)
    assert not tuning.has_key_scales
