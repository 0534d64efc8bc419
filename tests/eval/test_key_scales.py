"""Key scales of judged and tuned caches: which layers of which caches share a measurement."""

import pytest
import torch

from gear_trt.eval import candidate, key_scales
from gear_trt.eval.key_scales import KeyScales
from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.torch import measure_key_scales
from tests.eval.models import subject
from tests.torch.networks import tokens


def of(name, **changes):
    return ModelConfig(CompressionConfig.preset(name, **changes))


@pytest.fixture
def measured(monkeypatch):
    """Configs that were measured, one per pass of the model."""
    configs = []

    def counted(model, compression):
        configs.append(compression)
        return measure_key_scales(model, compression)

    monkeypatch.setattr(key_scales, "measure_key_scales", counted)
    return configs


def test_a_pass_per_group_size_has_the_scales_of_every_mix(measured):
    model = subject().model
    scales = KeyScales(model)
    mixed = ModelConfig.of_each([of("k4v4").base, of("tiny").base])
    want = measure_key_scales(model, mixed)
    got = scales.of(mixed)
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))
    assert scales.of(of("near-lossless"))[0] is got[0]
    assert scales.of(of("tiny"))[1] is got[1]
    assert scales.of(of("tiny"))[0] is not got[0]
    assert measured == [of("k4v4").base, of("tiny").base]


def test_sinks_count(measured):
    scales = KeyScales(subject().model)
    without, with_sinks = (scales.of(of("k4v4", sinks=sinks))[0] for sinks in (0, 4))
    assert not torch.equal(without, with_sinks)
    assert len(measured) == 2


def test_what_is_not_to_be_scaled_is_not_measured(measured):
    model = subject().model
    assert KeyScales(model).of(of("paper-4bit")) == [None, None]
    assert KeyScales(model, scale_keys=False).of(of("k4v4")) == [None, None]
    assert not measured


def test_an_unscaled_candidate_says_so_and_a_scaled_one_decodes_with_its_scales():
    tiny = subject()
    scales = KeyScales(tiny.model).of(of("k2v2"))
    plain = candidate.gear("k2v2", of("k2v2"), tiny.model.config)
    scaled = candidate.gear("k2v2", of("k2v2"), tiny.model.config, scales)
    assert plain.name == scaled.name + candidate.UNSCALED_SUFFIX
    assert scaled.bits_per_element == plain.bits_per_element
    ids = tokens(1, 200)
    logits = []
    for cache in (plain, scaled):
        decoder = tiny.with_cache(cache)
        decoder.step(ids)
        logits.append(decoder.step(ids[:, :3]))
    assert not torch.equal(*logits)
