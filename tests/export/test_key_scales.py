"""Scales of key channels: the model stays what it is, and compressing its cache costs less."""

import json

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import gear_trt
from gear_trt.cli.export import app
from gear_trt.cli.main import app as gear
from gear_trt.errors import ErrorCode, GearError
from gear_trt.export import export_model
from gear_trt.export.build.measure_keys import STAGE_FILE
from gear_trt.runtime.manifest import Manifest
from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.spec.model_config import LayerRule
from tests.export import decoders
from tests.export.conftest import sources_of

pytestmark = pytest.mark.usefixtures("needs_library")

CONFIG = CompressionConfig.preset("k4v4", value_bits=8)
SCALED = ("transformers", "genai", "dynamo-23")


@pytest.fixture(scope="module")
def network():
    """A model whose key channels differ in size, as those of Qwen2.5 do."""
    network = decoders.llama()
    uneven = torch.from_numpy(np.random.default_rng(0).lognormal(0, 1.5, decoders.HEAD_DIM))
    with torch.no_grad():
        for layer in network.model.layers:
            keys = layer.self_attn.k_proj.weight
            queries = layer.self_attn.q_proj.weight
            keys *= uneven.repeat(decoders.KV_HEADS)[:, None].float()
            queries /= uneven.repeat(decoders.HEADS)[:, None].float()
    return network


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    return decoders.save_checkpoint(network, tmp_path_factory.mktemp("uneven") / "tiny-llama")


@pytest.fixture(scope="module")
def sources(network, checkpoint, tmp_path_factory):
    return sources_of(network, checkpoint, tmp_path_factory.mktemp("uneven-sources"))


def export(source, folder, **options):
    options = {"config": CONFIG, "max_context": decoders.CONTEXT, **options}
    return export_model(source, folder, **options)


def logits_of(folder, tokens_BT):
    """Logits [B, T, V] of an engine, token by token after a prompt."""
    with gear_trt.load(folder, batch=len(tokens_BT), threads=1) as engine:
        parts = np.split(tokens_BT, range(100, tokens_BT.shape[1], 5), axis=1)
        return np.concatenate([engine.step(part, all_logits=True) for part in parts], axis=1)


def error_of(folder, network):
    """Mean squared error of the logits, over their variance."""
    tokens_BT = np.random.default_rng(5).integers(0, decoders.VOCABULARY, (2, 200))
    with torch.no_grad():
        exact_BTV = network(torch.from_numpy(tokens_BT)).logits.numpy()
    return ((logits_of(folder, tokens_BT) - exact_BTV) ** 2).mean() / exact_BTV.var()


@pytest.mark.parametrize("form", SCALED)
def test_compression_costs_less(form, sources, network, tmp_path):
    export(sources(form), tmp_path / "plain", scale_keys=False)
    report = export(sources(form), tmp_path / "scaled")
    plain, scaled = (error_of(tmp_path / name, network) for name in ("plain", "scaled"))
    assert scaled < 0.6 * plain
    assert report.scaled_layers == decoders.LAYERS
    assert Manifest.read(tmp_path / "scaled").has_key_scales
    assert not Manifest.read(tmp_path / "plain").has_key_scales
    assert not (tmp_path / "scaled" / STAGE_FILE).exists()


def test_before_any_token_is_compressed_nothing_changes(sources, network, tmp_path):
    export(sources("genai"), tmp_path / "scaled")
    tokens_BT = np.random.default_rng(5).integers(0, decoders.VOCABULARY, (2, CONFIG.chunk))
    with torch.no_grad():
        exact_BTV = network(torch.from_numpy(tokens_BT)).logits.numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "scaled", tokens_BT), exact_BTV, atol=2e-2)


def test_two_exports_are_equal(sources, tmp_path):
    for name in ("first", "second"):
        export(sources("genai"), tmp_path / name)
    first, second = ((tmp_path / name / "model.onnx").read_bytes() for name in ("first", "second"))
    assert first == second


def test_half_precision(sources, network, tmp_path):
    for name in ("plain", "scaled"):
        export(
            sources("transformers"), tmp_path / name, dtype="float16", scale_keys=name == "scaled"
        )
    plain, scaled = (error_of(tmp_path / name, network) for name in ("plain", "scaled"))
    assert scaled < 0.6 * plain


@pytest.mark.parametrize(("layers", "scaled"), [("0", decoders.LAYERS - 1), ("0-1", 0)])
def test_only_layers_that_gain_are_scaled(layers, scaled, sources, tmp_path):
    rules = [LayerRule.parse(f"{layers}:key_bits=16,rotate_keys=0")]
    report = export(
        sources("genai"),
        tmp_path / "engine",
        config=ModelConfig.of(CONFIG, rules),
    )
    assert report.scaled_layers == scaled
    assert Manifest.read(tmp_path / "engine").has_key_scales == bool(scaled)


@pytest.mark.parametrize("preset", ["fp16", "exact", "paper-4bit"])
def test_a_config_for_which_scales_do_nothing_is_left_alone(preset, sources, tmp_path):
    config = CompressionConfig.preset(preset)
    reports = [
        export(sources("genai"), tmp_path / str(scale_keys), config=config, scale_keys=scale_keys)
        for scale_keys in (True, False)
    ]
    assert [report.scaled_layers for report in reports] == [0, 0]
    first, second = ((tmp_path / name / "model.onnx").read_bytes() for name in ("True", "False"))
    assert first == second


def test_a_model_that_cpus_do_not_run_is_exported_without(sources, tmp_path):
    model = onnx.load(sources("genai"))
    node = next(
        node for node in model.graph.node if node.name == "/model/layers.0/mlp/act_fn/Sigmoid"
    )
    node.op_type, node.domain = "OpOfAnotherRuntime", "com.microsoft"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(GearError) as caught:
        export(tmp_path / "model.onnx", tmp_path / "engine")
    assert caught.value.code is ErrorCode.DAMAGED_ENGINE
    assert "--no-scale-keys" in caught.value.hint
    assert not (tmp_path / "engine").exists()
    export(tmp_path / "model.onnx", tmp_path / "engine", scale_keys=False)


def test_the_command(sources, tmp_path):
    arguments = [str(sources("genai")), "-o", str(tmp_path / "engine")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["scaled_layers"] == decoders.LAYERS
    shown = CliRunner().invoke(gear, ["inspect", str(tmp_path / "engine")])
    assert "key scales       yes" in shown.stdout
    table = CliRunner().invoke(app, [*arguments, "--force"])
    assert f"in {decoders.LAYERS} layers" in table.output
    assert (
        "key channels are scaled in 2 of 2 layers"
        in (tmp_path / "engine" / "report.md").read_text()
    )
    plain = CliRunner().invoke(app, [*arguments, "--force", "--no-scale-keys", "--json"])
    assert json.loads(plain.stdout)["scaled_layers"] == 0
