"""Peers as caches: what they hold, when they compress it, and what they say it costs."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from gear_trt.bench import dependencies
from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval import formats, peers
from gear_trt.eval.candidate import Decoder, exact
from gear_trt.eval.peers import (
    BUFFER,
    PACKAGES,
    PEERS,
    Setting,
    SimulatedLayer,
    available_peers,
    make_peer,
)
from gear_trt.eval.steps import feed
from tests.eval.models import subject
from tests.torch.networks import tokens

BITS = {
    "kivi-k4v4-g32": 5.0,
    "per-token-4": 5.0,  # groups of a head's 32 channels
    "fp8-e4m3": 8.0,
    "ort-int4": 4.0,
    "llama-q8_0": 8.5,
    "llama-q4_0": 4.5,
}


@pytest.fixture(scope="module")
def setting():
    return Setting(subject().model, tokens(1, 128, seed=5))


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_decodes(setting, name):
    if name not in available_peers():
        pytest.skip(f"{PACKAGES[name]} is not installed")
    peer = make_peer(name, setting)
    decoder = Decoder(setting.model, peer)
    ids = tokens(2, BUFFER + 40)
    got = torch.cat([logits for _, logits in feed(decoder, ids, width=8)], dim=1)
    want = Decoder(setting.model, exact()).step(ids)
    change = (got - want).norm() / want.norm()
    assert 1e-6 < change < 0.7
    if name in BITS:
        assert peer.bits_per_element == BITS[name]


def test_full_chunks_are_held_as_the_format_gives_them_and_the_newest_tokens_exact():
    layer = SimulatedLayer(formats.q4_0, formats.q8_0, BUFFER)
    x = torch.randn(2, 3, 150, 64, generator=torch.Generator().manual_seed(0))
    for start in range(0, 150, 50):
        part = x[:, :, start : start + 50]
        keys, _ = layer.update(part, part)
        assert torch.equal(keys[:, :, start:], part), "new tokens are exact within their call"
    keys, values = layer.update(x[:, :, :1], x[:, :, :1])
    full = 2 * BUFFER
    assert torch.equal(keys[:, :, :full], formats.q4_0(x[:, :, :full]))
    assert torch.equal(values[:, :, :full], formats.q8_0(x[:, :, :full]))
    assert torch.equal(keys[:, :, full:150], x[:, :, full:])


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_keeps_the_newest_tokens_that_it_is_asked_to(setting, name):
    if name not in available_peers():
        pytest.skip(f"{PACKAGES[name]} is not installed")
    wide = make_peer(name, replace(setting, buffer=2 * BUFFER))
    assert (make_peer(name, setting).buffer, wide.buffer) == (BUFFER, 2 * BUFFER)
    ids = tokens(1, 2 * BUFFER)
    past, newest = ids[:, :-1], ids[:, -1:]
    decoders = [Decoder(setting.model, peer) for peer in (wide, exact())]
    for decoder in decoders:
        decoder.step(past)
    got, want = (decoder.step(newest) for decoder in decoders)
    torch.testing.assert_close(got, want, atol=2e-2, rtol=0)  # ours holds its buffer in FP16


def test_fixed_scales_come_from_the_calibration_text(setting):
    cache = DynamicCache(config=setting.config)
    with torch.no_grad():
        setting.model(setting.calibration_BT, past_key_values=cache)
    keys, values = setting.largest[1]
    torch.testing.assert_close(keys[0, :, 0], cache.layers[1].keys.abs().amax(dim=(0, 2)))
    torch.testing.assert_close(values[0, :, 0], cache.layers[1].values.abs().amax(dim=(0, 2)))


def test_a_model_with_a_window_is_refused():
    windowed = subject("mistral")
    peer = make_peer("llama-q8_0", Setting(windowed.model, tokens(1, 8)))
    with pytest.raises(GearError) as caught:
        Decoder(windowed.model, peer)
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_a_package_that_is_missing_is_named(setting, monkeypatch):
    monkeypatch.setattr(dependencies, "is_installed", lambda name: name != "hqq")
    monkeypatch.setattr(peers, "is_installed", lambda name: name != "hqq")
    assert not {"hqq-4", "hqq-2"} & set(available_peers())
    assert "kivi-k4v4-g64" in available_peers()
    with pytest.raises(GearError) as caught:
        make_peer("hqq-4", setting)
    assert caught.value.code is ErrorCode.MISSING_DEPENDENCY
    assert "pip install hqq" in caught.value.hint
