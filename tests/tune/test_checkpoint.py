"""From files to layers: the text, and what is said of it."""

import pytest

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.checkpoint import Checkpoint
from gear_trt.spec import CompressionConfig
from gear_trt.tune.checkpoint import open_tunable, tune_checkpoint, tuning_facts
from gear_trt.tune.target import TuningTarget
from tests.eval.models import Letters
from tests.torch.networks import network

BASE = CompressionConfig()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    network("llama").save_pretrained(path)
    return path


def tune(folder, target):
    checkpoint = open_tunable(folder)
    return tune_checkpoint(checkpoint, BASE, target, scale_keys=True, progress=lambda *_: None)


def test_a_text_of_ones_own_is_measured_on_and_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "tokenizer", lambda _: Letters())
    monkeypatch.setattr("gear_trt.tune.checkpoint.write_tokens", None)
    target = TuningTarget(kl=1, text=tmp_path / "my.txt", tokens=192)
    target.text.write_text("ab" * 193)
    facts = tuning_facts(tune(folder, target), target)
    assert (facts.target_bits, facts.target_kl, facts.text) == (None, 1, "my.txt")
    assert facts.tokens == 2 * (192 - 64)
    assert 0 < facts.kl <= 1
    assert facts.outcome.startswith("to a KL divergence of 1: KL ")
    assert facts.outcome.endswith(" on 256 tokens of my.txt")


def test_a_short_text_is_refused_before_the_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "tokenizer", lambda _: Letters())
    monkeypatch.setattr(Checkpoint, "network", None)
    target = TuningTarget(bits=4, text=tmp_path / "my.txt")
    target.text.write_text("ab")
    with pytest.raises(GearError, match="has 2 tokens") as refused:
        tune(folder, target)
    assert refused.value.code is ErrorCode.BAD_REQUEST


def test_too_few_bits_are_refused_before_anything_is_measured(folder, monkeypatch):
    monkeypatch.setattr("gear_trt.tune.checkpoint.write_tokens", None)
    with pytest.raises(GearError, match="reaches 2 bits") as refused:
        tune(folder, TuningTarget(bits=2))
    assert refused.value.code is ErrorCode.BAD_REQUEST


def test_no_sequence_is_longer_than_the_context(tmp_path):
    network("llama", max_position_embeddings=200).save_pretrained(tmp_path)
    target = TuningTarget(bits=4)
    assert target.tokens > 200
    assert tune(tmp_path, target).tokens == 2 * (200 - 64)


def test_a_context_that_fills_too_few_pages_is_refused(tmp_path):
    network("llama", max_position_embeddings=160).save_pretrained(tmp_path)
    with pytest.raises(GearError, match="context is 160") as refused:
        tune(tmp_path, TuningTarget(bits=4))
    assert refused.value.code is ErrorCode.UNSUPPORTED_MODEL


@pytest.mark.parametrize("target", [{}, {"bits": 4, "kl": 1}, {"bits": 4, "tokens": 100}])
def test_a_target_is_one_and_on_enough_tokens(target):
    with pytest.raises(GearError) as refused:
        TuningTarget(**target)
    assert refused.value.code is ErrorCode.BAD_REQUEST
