"""Tuning for an engine whose key channels are scaled: every measurement sees the scales."""

import numpy as np
import pytest
import torch

from gear_trt.eval import key_scales
from gear_trt.eval.candidate import Decoder, exact
from gear_trt.eval.divergence import Yardstick
from gear_trt.eval.key_scales import KeyScales
from gear_trt.spec import CompressionConfig
from gear_trt.torch import measure_key_scales
from gear_trt.tune.options import side_options
from gear_trt.tune.probe import ProbeLayer, probe
from gear_trt.tune.sensitivity import measure
from tests.torch.networks import network, tokens
from tests.tune.conftest import make_tuner

BASE = CompressionConfig.preset("k4v4")
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
    return KeyScales(model)


@pytest.fixture(scope="module")
def tuners(model):
    return [make_tuner(model=model, scale_keys=scale_keys) for scale_keys in (False, True)]


def test_scales_of_all_choices_are_measured_before_the_pass_that_probes(model, monkeypatch):
    measured = []

    def counted(model, compression):
        measured.append(compression)
        return measure_key_scales(model, compression)

    monkeypatch.setattr(key_scales, "measure_key_scales", counted)
    seen = []

    class Watched(ProbeLayer):
        def attend(self, *tensors, **how):
            seen.append(len(measured))
            return super().attend(*tensors, **how)

    monkeypatch.setattr("gear_trt.tune.probe.ProbeLayer", Watched)
    make_tuner(model=model).within_bits(3.6)
    assert [config.group_size for config in measured] == [32, 64]
    assert seen == [2] * 3


def test_attention_is_probed_with_scales(model, scales):
    options = [option for option in side_options() if option.variant == 0 and option.bits < 8]
    plain, scaled = (
        probe(model, tokens(2, 160), BASE, options, given, lambda *_: None)[UNEVEN_LAYER]
        for given in (KeyScales(model, scale_keys=False), scales)
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
        for given in (KeyScales(model, scale_keys=False), scales)
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
