"""Errors of each layer by itself, and what a layer holds."""

import numpy as np
import pytest
import torch

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval import candidate, formats
from gear_trt.eval.candidate import Decoder, exact
from gear_trt.eval.layers import layer_errors, record
from gear_trt.eval.peers import BUFFER, Setting, make_peer
from gear_trt.reference.page import compress_page, decompress_page
from gear_trt.spec import CompressionConfig, ModelConfig
from tests.eval.models import subject
from tests.torch.networks import tokens


@pytest.fixture(scope="module")
def tiny():
    return subject()


@pytest.fixture(scope="module")
def attended(tiny):
    return record(tiny.model, tokens(1, 150))


def errors(tiny, attended, cache):
    return list(layer_errors(tiny.model, cache, attended, model_name="tiny", text_name="noise"))


def gear(tiny, preset):
    compression = ModelConfig(CompressionConfig.preset(preset))
    return candidate.gear(preset, compression, tiny.model.config)


def test_recorded_keys_and_outputs_are_those_of_the_model(tiny, attended):
    decoder = Decoder(tiny.model, exact())
    decoder.step(tokens(1, 150))
    assert len(attended) == len(decoder.cache.layers)
    for layer, seen in zip(decoder.cache.layers, attended, strict=True):
        torch.testing.assert_close(seen.key_BHTD, layer.keys)
        torch.testing.assert_close(seen.value_BHTD, layer.values)
        assert seen.output_BTND.shape == (1, 150, 4, 32)


@pytest.mark.parametrize("cache", ["exact pages", "uncompressed"])
def test_a_lossless_cache_has_no_errors(tiny, attended, cache):
    kind = exact() if cache == "uncompressed" else gear(tiny, "exact")
    for row in errors(tiny, attended, kind):
        assert row.key_error == row.value_error == 0
        assert row.output_error < 1e-10


def test_errors_of_pages_are_those_of_the_reference(tiny, attended):
    config = CompressionConfig.preset("k2v2")
    for row, seen in zip(errors(tiny, attended, gear(tiny, "k2v2")), attended, strict=True):
        keys = seen.key_BHTD[0].half().float().numpy()
        values = seen.value_BHTD[0].half().float().numpy()
        held = keys.copy(), values.copy()
        for head in range(2):
            for start in range(config.sinks, 150 - BUFFER + 1, BUFFER):
                part = (head, slice(start, start + BUFFER))
                page = compress_page(keys[part], values[part], config)
                held[0][part], held[1][part] = decompress_page(page, config, 32)
        want = [
            np.square(got - np.asarray(side[0])).sum() / np.square(np.asarray(side[0])).sum()
            for got, side in zip(held, (seen.key_BHTD, seen.value_BHTD), strict=True)
        ]
        np.testing.assert_allclose((row.key_error, row.value_error), want, rtol=2e-2)
        assert row.output_error > 1e-6


def test_errors_of_a_simulated_peer_are_those_of_its_format(tiny, attended):
    peer = make_peer("llama-q4_0", Setting(tiny.model, tokens(1, 8)))
    for row, seen in zip(errors(tiny, attended, peer), attended, strict=True):
        held = seen.value_BHTD.clone()
        held[:, :, : 2 * BUFFER] = formats.q4_0(held[:, :, : 2 * BUFFER])
        want = (held - seen.value_BHTD).square().sum() / seen.value_BHTD.square().sum()
        assert row.value_error == pytest.approx(float(want), rel=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_windows_and_caps_are_refused(family):
    with pytest.raises(GearError) as caught:
        record(subject(family).model, tokens(1, 90))
    assert caught.value.code is ErrorCode.BAD_REQUEST
