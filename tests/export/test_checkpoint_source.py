"""Hugging Face folders and GGUF files: what they lack, and what GearAttention lacks for them."""

import importlib.util
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    Qwen3NextConfig,
    T5Config,
)

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.export import export_model
from tests.export.conftest import EXACT
from tests.export.decoders import TINY

SMALL = {**TINY, "num_hidden_layers": 1}


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def refused(source, output):
    with pytest.raises(GearError) as caught:
        export_model(source, output / "engine", config=EXACT)
    assert not list(output.glob("*engine*"))
    return caught.value


def test_a_folder_that_holds_no_model(tmp_path):
    error = refused(tmp_path, tmp_path)
    assert error.code is ErrorCode.MISSING_FILE
    assert "holds no model files" in error.message


def test_a_folder_with_two_gguf_files(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    error = refused(tmp_path, tmp_path)
    assert error.code is ErrorCode.MISSING_FILE
    assert error.hint == "pass one of them: a.gguf, b.gguf"


def test_a_file_of_an_unknown_kind(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\0")
    assert refused(tmp_path / "model.bin", tmp_path).code is ErrorCode.UNSUPPORTED_MODEL


def test_missing_weights(copy, tmp_path):
    (copy / "model.safetensors").unlink()
    error = refused(copy, tmp_path)
    assert error.code is ErrorCode.MISSING_FILE


def test_truncated_weights(copy, tmp_path):
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert refused(copy, tmp_path).code is ErrorCode.DAMAGED_MODEL


def test_a_missing_weight_is_not_made_up(copy, tmp_path):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    error = refused(copy, tmp_path)
    assert error.code is ErrorCode.DAMAGED_MODEL
    assert "model.layers.1.self_attn.k_proj.weight" in error.message


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGML" + bytes(100))
    assert refused(tmp_path / "model.gguf", tmp_path).code is ErrorCode.DAMAGED_MODEL


def test_a_truncated_gguf(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(20))
    assert refused(tmp_path / "model.gguf", tmp_path).code is ErrorCode.DAMAGED_MODEL


def test_missing_gguf_packages_are_named(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refused(tmp_path / "model.gguf", tmp_path)
    assert error.code is ErrorCode.MISSING_DEPENDENCY
    assert "accelerate, gguf" in error.message
    assert error.hint == "pip install 'gear-trt[gguf]'"


UNSUPPORTED = {
    "encoder and cross-attention": T5Config(),
    "layers of type linear_attention": Qwen3NextConfig(num_hidden_layers=4),
    "rotary embedding (dynamic)": LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    ),
    "quantized in a format of their own": LlamaConfig(
        **SMALL, quantization_config={"quant_method": "gptq", "bits": 4}
    ),
}


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_configs_that_the_op_cannot_express_are_refused_before_loading(tmp_path, reason):
    UNSUPPORTED[reason].save_pretrained(tmp_path)
    error = refused(tmp_path, tmp_path)
    assert error.code is ErrorCode.UNSUPPORTED_MODEL
    assert reason in error.message


def gpt_oss():
    layers = {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 1}
    return GptOssConfig(**layers, layer_types=["full_attention"])


def bloom():
    return BloomConfig(vocab_size=128, hidden_size=64, n_layer=1, n_head=4)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (gpt_oss, "attention sinks (s_aux)"),
        (bloom, "0 of its 1 layers use transformers' attention interface"),
    ],
)
def test_models_that_the_op_cannot_express_are_refused(tmp_path, config, reason):
    AutoModelForCausalLM.from_config(config()).save_pretrained(tmp_path)
    error = refused(tmp_path, tmp_path)
    assert error.code is ErrorCode.UNSUPPORTED_MODEL
    assert reason in error.message


def test_sliding_windows_softcaps_and_float16_weights_are_kept(needs_library, tmp_path):
    changes = {"sliding_window": 24, "attn_logit_softcapping": 5.0, "dtype": "float16"}
    config = Gemma2Config(**{**TINY, **changes})
    network = AutoModelForCausalLM.from_config(config).eval()
    network.save_pretrained(tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "engine", config=EXACT)
    assert [site.sliding_window for site in report.sites] == [24, 0]
    assert [site.softcap for site in report.sites] == [5.0, 5.0]
    tokens = torch.randint(3, 100, (1, 60), generator=torch.manual_seed(0))
    with torch.no_grad():
        expected_V = network.float()(tokens).logits[0, -1].numpy()
    with gear_trt.load(tmp_path / "engine", threads=1) as engine:
        logits_V = engine.step(tokens.numpy())[0]
    np.testing.assert_allclose(logits_V, expected_V, atol=0.02 * np.abs(expected_V).max())
