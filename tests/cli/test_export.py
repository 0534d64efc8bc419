"""`gear-export`: flags, output, exit status."""

import errno
import json
import os

import onnx
import pytest
from typer.testing import CliRunner

from gear_trt.cli.export import app
from gear_trt.errors import ExitStatus
from gear_trt.runtime.manifest import Manifest
from gear_trt.spec import CompressionConfig
from tests.export import text_graphs as text


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(text.written_out(), path)
    return path


@pytest.fixture(scope="module")
def unroutable(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(text.written_out(("Concat<axis=2>(old_keys, key)", "Identity(key)")), path)
    return path


def gear_export(*arguments):
    context = ("--max-context", text.CONTEXT)
    return CliRunner().invoke(app, [str(argument) for argument in (*arguments, *context)])


def test_the_result_goes_to_stdout_and_progress_to_stderr(model, tmp_path):
    result = gear_export(model, "-o", tmp_path / "engine")
    assert result.exit_code == ExitStatus.OK
    lines = result.stdout.splitlines()
    assert "bits per element" in result.stdout
    assert lines[-1] == f'next: gear generate {tmp_path / "engine"} -p "Why is the sky blue?"'
    assert result.stderr.splitlines() == [
        "reading model.onnx",
        "looking for attention layers",
        "routing 1 attention layers",
        f"writing {tmp_path / 'engine'}",
        "measuring queries and keys",
        "no tokenizer was found beside the model, so the engine takes token ids only; "
        "pass --tokenizer DIR to add one",
    ]


def test_json_is_one_object(model, tmp_path):
    result = gear_export(model, "-o", tmp_path / "engine", "--json")
    report = json.loads(result.stdout)
    assert report["schema"] == "gear.export/1"
    assert report["output"] == str(tmp_path / "engine")
    assert report["model"]["vocab_size"] == text.WIDTH
    assert report["sites"][0]["num_kv_heads"] == text.KV_HEADS
    assert report == json.loads((tmp_path / "engine" / "report.json").read_text())


def flag_of(field):
    return f"--{field.replace('_', '-')}"


CHANGES = {
    "key_bits": 8,
    "value_bits": 2,
    "group_size": 64,
    "metadata_bits": 16,
    "rank": 3,
    "factor_bits": 8,
    "power_iters": 5,
    "outliers": 2,
    "chunk": 128,
    "sinks": 7,
    "rotate_keys": 0,
    "rotate_values": 0,
    "fit_ranges": 0,
}


@pytest.mark.parametrize("field", CompressionConfig.model_fields)
def test_every_field_has_a_flag(model, tmp_path, field):
    value = CHANGES[field]
    is_switch = field.startswith(("rotate", "fit"))
    flags = [f"--no-{flag_of(field)[2:]}"] if is_switch else [flag_of(field), value]
    assert gear_export(model, "-o", tmp_path / "engine", *flags).exit_code == ExitStatus.OK
    config = Manifest.read(tmp_path / "engine").layers[0].config
    assert config == CompressionConfig.preset("k4v4", **{field: value})


def test_layers_and_files(model, tmp_path):
    path = tmp_path / "gear.toml"
    path.write_text('preset = "k3v2"\nsinks = 2\n[layers.0]\nbits = 8\n')
    flags = ("--config", path, "--sinks", 6, "--layer", "0:value_bits=4", "--layer", "0-0:rank=1")
    assert gear_export(model, "-o", tmp_path / "engine", *flags).exit_code == ExitStatus.OK
    config = Manifest.read(tmp_path / "engine").layers[0].config
    assert config == CompressionConfig.preset("k3v2", sinks=6, key_bits=8, value_bits=4, rank=1)


def test_the_report_is_also_written_for_people(model, tmp_path):
    gear_export(model, "-o", tmp_path / "engine", "--layer", "0:key_bits=8")
    text = (tmp_path / "engine" / "report.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| 0 |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:2] + cells[3:9] == ["MatMul + Softmax", "4", "2", "16", "0.3", "", "all"]
    assert "key_bits 8, value_bits 4" in cells[9]
    assert "| model.onnx | " in text
    report = json.loads((tmp_path / "engine" / "report.json").read_text())
    assert report["sites"][0]["config"]["key_bits"] == 8
    assert report["config"]["key_bits"] == 4
    assert f"{report['cache']['bits_per_element']:.2f} bits per element" in text


def test_dry_run_shows_the_layers_and_writes_nothing(model, tmp_path):
    before = sorted(model.parent.iterdir())
    result = gear_export(model, "--dry-run")
    assert result.exit_code == ExitStatus.OK
    assert result.stdout.splitlines()[-1] == "1 of 1 attention layers can be routed"
    assert "MatMul + Softmax" in result.stdout
    assert sorted(model.parent.iterdir()) == before


def test_dry_run_says_why_not(unroutable):
    result = gear_export(unroutable, "--dry-run", "--json")
    assert result.exit_code == ExitStatus.UNSUPPORTED
    (site,) = json.loads(result.stdout)["sites"]
    assert site["reason"].startswith("key comes from MatMul node")


def test_a_model_that_cannot_be_routed_leaves_nothing(unroutable, tmp_path):
    result = gear_export(unroutable, "-o", tmp_path / "engine")
    assert result.exit_code == ExitStatus.UNSUPPORTED
    error, closest, hint = result.stderr.splitlines()[-3:]
    assert error == "error[E301]: 0 of 1 attention layers can be routed"
    assert closest.startswith("  closest: layer 0, node ")
    assert hint.startswith("  hint: export the model with a KV cache")
    assert not list(tmp_path.iterdir())


def test_a_failure_is_one_json_object_too(tmp_path):
    result = gear_export(tmp_path / "absent.onnx", "-o", tmp_path / "engine", "--json")
    assert result.exit_code == ExitStatus.FAILED
    error = json.loads(result.stdout)
    assert (error["schema"], error["code"]) == ("gear.error/1", "E201")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--preset", "k5"], ExitStatus.FAILED, "error[E101]: unknown preset 'k5'"),
        (["--key-bits", "5"], ExitStatus.FAILED, "error[E102]"),
        (["--key-bits", "16"], ExitStatus.FAILED, "rotate_keys=1 with key_bits=16"),
        (["--key-bits", "many"], ExitStatus.USAGE, "Invalid value for '--key-bits'"),
        (
            ["--layer", "0:key_bits=5"],
            ExitStatus.FAILED,
            "--layer 0:key_bits=5 is not valid",
        ),
        (["--layer", "1:bits=8"], ExitStatus.FAILED, "the model has layers 0 to 0"),
        (["--config", "/nowhere.toml"], ExitStatus.FAILED, "error[E201]: /nowhere.toml does not"),
        (
            ["--config", "/dev/null", "--layer", "0"],
            ExitStatus.FAILED,
            "--layer 0: no field is set",
        ),
        (["--tokenizer", "/nowhere"], ExitStatus.FAILED, "error[E201]: /nowhere has no tokenizer"),
    ],
)
def test_wrong_flags_are_named(model, tmp_path, arguments, status, message):
    result = gear_export(model, "-o", tmp_path / "engine", *arguments)
    assert result.exit_code == status
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_missing_permissions_have_a_code_of_their_own(model, tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), str(tmp_path / "engine"))

    monkeypatch.setattr("gear_trt.export.pipeline.staged_folder", refuse)
    result = gear_export(model, "-o", tmp_path / "engine")
    assert result.exit_code == ExitStatus.FAILED
    assert f"error[E205]: cannot open {tmp_path / 'engine'}: {os.strerror(number)}" in result.stderr


def test_an_output_is_needed(model):
    result = gear_export(model)
    assert result.exit_code == ExitStatus.USAGE
    assert "--output" in result.stderr


def test_an_engine_is_replaced_with_force_only(model, tmp_path):
    first = gear_export(model, "-o", tmp_path / "engine")
    second = gear_export(model, "-o", tmp_path / "engine")
    third = gear_export(model, "-o", tmp_path / "engine", "--force", "--preset", "k3v2")
    assert [run.exit_code for run in (first, second, third)] == [0, ExitStatus.FAILED, 0]
    assert "error[E203]" in second.stderr
    assert Manifest.read(tmp_path / "engine").layers[0].config.value_bits == 2


def test_a_bug_is_reported_as_one(model, tmp_path, monkeypatch):
    monkeypatch.setattr("gear_trt.export.pipeline.find_kv", lambda context: 1 / 0)
    result = gear_export(model, "-o", tmp_path / "engine")
    assert result.exit_code == ExitStatus.INTERNAL
    assert "ZeroDivisionError" in result.stderr
    assert "please report it" in result.stderr
