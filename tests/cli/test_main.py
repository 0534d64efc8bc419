"""`gear generate`, `gear inspect` and `gear doctor`: output, exit status, start-up time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gear_trt.cli.main import app
from gear_trt.errors import ExitStatus
from gear_trt.runtime.engine import Engine, load
from gear_trt.runtime.manifest import MODEL_FILE
from gear_trt.spec import CompressionConfig, page_layout
from tests.cli.models import save_decoder
from tests.graphs import ToyModel
from tests.runtime.folders import MAX_CONTEXT, write_engine

HEAVY = {
    "matplotlib",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tokenizers",
    "torch",
    "transformers",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engine") / "toy")


def gear(*arguments, **kwargs):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **kwargs)


def generate(folder, *arguments, **kwargs):
    return gear("generate", folder, "--threads", 1, *arguments, **kwargs)


def test_generate_streams_text_to_stdout_and_statistics_to_stderr(folder):
    result = generate(folder, "-p", "Hi", "-n", 12)
    with load(folder, threads=1) as engine:
        answer = engine.generate("Hi", max_new_tokens=12)
    assert result.exit_code == ExitStatus.OK
    assert result.stdout == answer.text + "\n"
    assert "4 prompt + 12 new tokens" in result.stderr
    assert "tokens/s" in result.stderr
    assert "MB" in result.stderr


def test_prompt_from_stdin(folder):
    options = ("-n", 5, "--json")
    piped = json.loads(generate(folder, "-p", "-", *options, input="Hi").stdout)
    given = json.loads(generate(folder, "-p", "Hi", *options).stdout)
    assert piped["token_ids"] == given["token_ids"]


def test_json_is_one_object(folder):
    result = generate(folder, "-p", "Hi", "-n", 5, "--json")
    row = json.loads(result.stdout)
    assert row["schema"] == "gear.generate/1"
    assert row["prompt_tokens"] == 4
    assert row["generated_tokens"] == len(row["token_ids"]) == 5
    assert row["finish_reason"] == "length"
    assert row["kv_bytes"] > 0
    assert row["fp16_bytes"] > 0


def test_raw_leaves_the_chat_template_out(folder):
    row = json.loads(generate(folder, "-p", "Hi", "-n", 1, "--raw", "--json").stdout)
    assert row["prompt_tokens"] == 2


def test_seed_makes_sampling_repeatable(folder):
    def draw(seed):
        options = ("--temperature", 1.5, "--top-p", 0.95, "--seed", seed, "-n", 20, "--json")
        return json.loads(generate(folder, "-p", "Hi", *options).stdout)["token_ids"]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (("-p", ""), "E501", ExitStatus.FAILED),
        (("-p", "x" * (MAX_CONTEXT + 1)), "E502", ExitStatus.FAILED),
        (("-p", "Hi", "--temperature", -1), "E503", ExitStatus.FAILED),
    ],
)
def test_errors_have_a_code_a_hint_and_no_traceback(folder, arguments, code, status):
    result = generate(folder, *arguments)
    assert result.exit_code == status
    assert f"error[{code}]" in result.stderr
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("backend", "code", "status"),
    [
        ("onnxruntime-cuda", "E604", ExitStatus.ENVIRONMENT),
        ("tensorrt", "E201", ExitStatus.FAILED),
        ("cuda", None, ExitStatus.USAGE),
    ],
)
def test_backends_by_name(folder, backend, code, status):
    result = generate(folder, "-p", "Hi", "--backend", backend)
    assert result.exit_code == status
    assert code is None or f"error[{code}]" in result.stderr
    assert generate(folder, "-p", "Hi", "-n", 1, "--backend", "onnxruntime").exit_code == 0


def test_interrupt(folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream", interrupted)
    assert generate(folder, "-p", "Hi").exit_code == ExitStatus.INTERRUPTED


def test_wrong_usage(folder):
    assert gear("generate", folder).exit_code == ExitStatus.USAGE
    assert gear("generate", folder, "-p", "Hi", "--no-such-flag").exit_code == ExitStatus.USAGE


def test_folder_that_is_no_engine(tmp_path):
    for result in (generate(tmp_path, "-p", "Hi"), gear("inspect", tmp_path)):
        assert result.exit_code == ExitStatus.FAILED
        assert "gear-export" in result.stderr


def test_damaged_engine(tmp_path):
    folder = write_engine(tmp_path / "engine")
    (folder / MODEL_FILE).write_bytes(b"not a model")
    result = generate(folder, "-p", "Hi", "--json")
    assert result.exit_code == ExitStatus.FAILED
    assert json.loads(result.stdout)["code"] == "E401"


def test_missing_library(folder, monkeypatch):
    monkeypatch.setenv("GEAR_LIBRARY", "/no/such/libgear.so")
    result = generate(folder, "-p", "Hi")
    assert result.exit_code == ExitStatus.ENVIRONMENT
    assert "/no/such/libgear.so" in result.stderr


def test_inspect_engine(folder):
    result = gear("inspect", folder)
    assert result.exit_code == ExitStatus.OK
    for fact in ("toy", "layers 0-1", "4 heads, 2 KV heads, head_dim 32", "key_bits 4", "gear_trt"):
        assert fact in result.stdout


def test_inspect_json(folder):
    row = json.loads(gear("inspect", folder, "--json").stdout)
    assert row["schema"] == "gear.inspect/1"
    assert row["model"]["max_context"] == MAX_CONTEXT
    assert row["has_key_scales"] is False
    assert row["fp16_bytes_per_token"] == 2 * 2 * 2 * 32 * 2
    assert row["gear_bytes_per_token"] == 2 * 2 * 592 * 4 / 64
    assert row["layer_groups"][0]["layers"] == [0, 1]
    assert row["layer_groups"][0]["bits_per_element"] == 592 * 32 / (2 * 64 * 32)


def test_inspect_model(tmp_path):
    model = save_decoder(tmp_path / "model.onnx")
    result = gear("inspect", model, "--max-context", 64)
    assert result.exit_code == ExitStatus.OK
    _, layer, verdict = result.stdout.splitlines()
    assert layer.split() == [
        "0",
        "GroupQueryAttention",
        "4",
        "2",
        "16",
        "0.25",
        "none",
        "all",
        "match",
    ]
    assert verdict == "1 of 1 attention layers can be routed"
    row = json.loads(gear("inspect", model, "--max-context", 64, "--json").stdout)
    assert row["schema"] == "gear.inspect/1"
    assert row["sites"][0]["head_dim"] == 16


@pytest.mark.parametrize("arguments", [(), ("--why",)])
def test_inspect_model_that_cannot_be_routed(tmp_path, arguments):
    model = save_decoder(tmp_path / "model.onnx", smooth_softmax=1)
    result = gear("inspect", model, *arguments)
    assert result.exit_code == ExitStatus.UNSUPPORTED
    assert "no match: attribute smooth_softmax=1 is not supported" in result.stdout
    assert "0 of 1" in result.stdout
    assert (" attention " in result.stdout.splitlines()[1]) == ("--why" in arguments)


def test_why_shows_what_a_dry_run_shows(tmp_path):
    from gear_trt.cli.export import app as export_app

    model = save_decoder(tmp_path / "model.onnx")
    options = [str(model), "--max-context", "64"]
    dry_run = CliRunner().invoke(export_app, [*options, "--dry-run"])
    assert gear("inspect", *options, "--why").stdout == dry_run.stdout


def test_inspect_engine_with_mixed_layers(tmp_path):
    configs = tuple(CompressionConfig.preset("k4v4", key_bits=bits) for bits in (8, 4, 4, 8))
    folder = write_engine(tmp_path / "mixed", ToyModel(layer_configs=configs, num_layers=4))
    shown = gear("inspect", folder).stdout
    assert "layers 0, 3 " in shown
    assert "layers 1-2 " in shown
    row = json.loads(gear("inspect", folder, "--json").stdout)
    assert [group["layers"] for group in row["layer_groups"]] == [[0, 3], [1, 2]]
    pages = [2 * page_layout(config, 32).page_bytes / 64 for config in configs]
    assert row["gear_bytes_per_token"] == sum(pages)


def test_doctor():
    result = gear("doctor")
    assert result.exit_code == ExitStatus.OK
    assert "kernel library" in result.stdout
    row = json.loads(gear("doctor", "--json").stdout)
    values = {finding["name"]: finding["value"] for finding in row["findings"]}
    assert values["custom op in onnxruntime"] == "registered"


def test_doctor_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("GEAR_LIBRARY", "/no/such/libgear.so")
    result = gear("doctor")
    assert result.exit_code == ExitStatus.ENVIRONMENT
    assert "/no/such/libgear.so" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("generate", "--help"), ("serve", "--help"), ("bench", "ops", "--help")],
)
def test_help_imports_nothing_heavy(arguments):
    run = subprocess.run(
        [sys.executable, "-X", "importtime", Path(sys.executable).with_name("gear"), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.split("|")[-1].strip() for line in run.stderr.splitlines() if "|" in line}
    assert not imported & HEAVY
    assert "typer" in imported
    assert "Usage: gear" in run.stdout
