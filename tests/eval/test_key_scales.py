"""Key scales of judged caches: which of them share a measurement."""

import torch

from gear_trt.eval import candidate, key_scales
from gear_trt.eval.key_scales import KeyScales
from gear_trt.spec import CompressionConfig, ModelConfig
from tests.eval.models import subject
from tests.torch.networks import tokens


def of(name, **changes):
    return ModelConfig(CompressionConfig.preset(name, **changes))


def test_configs_of_one_group_size_share_a_measurement(monkeypatch):
    measured = []
    measure = key_scales.measure_key_scales

    def counted(model, compression):
        measured.append(compression)
        return measure(model, compression)

    monkeypatch.setattr(key_scales, "measure_key_scales", counted)
    scales = KeyScales(subject().model)
    assert scales.of(of("k4v4")) is scales.of(of("near-lossless"))
    assert scales.of(of("tiny")) is not scales.of(of("k4v4"))
    assert scales.of(of("paper-4bit")) == [None, None]
    assert measured == [of("k4v4"), of("tiny"), of("paper-4bit")]


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
