"""`gear tune`: what it writes, prints and refuses."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from gear_trt.cli.main import app
from gear_trt.errors import ExitStatus
from gear_trt.spec import CompressionConfig, bits_per_element
from gear_trt.spec.config_file import ConfigFile, choose_config
from tests.torch.networks import network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    network("llama").save_pretrained(path)
    return path


def tune(*arguments):
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


def refused(result, code, *texts):
    assert result.exit_code == ExitStatus.FAILED or code == "E302"
    for text in (f"error[{code}]", "hint:", *texts):
        assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_the_file_is_what_export_takes(folder, tmp_path):
    path = tmp_path / "tuned.toml"
    result = tune(folder, "-o", path, "--target-bits", 3.5, "--tokens", 192, "--json")
    assert result.exit_code == ExitStatus.OK, result.stderr
    report = json.loads(result.stdout)
    assert report["schema"] == "gear.tune/1"
    layers = choose_config(ConfigFile.read(path), fields={}).of_layers(2)
    assert [config.model_dump() for config in layers] == report["layers"]
    bits = sum(bits_per_element(config, 32) for config in layers) / 2
    assert bits == pytest.approx(report["bits_per_element"])
    assert bits <= 3.5
    assert report["has_key_scales"]
    note = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert note[0].startswith("# gear tune tiny: 3.")
    assert note[-1] == "# with key scales"
    for stage in ("loading", "writing", "attention", "sensitivity", "verifying"):
        assert stage in result.stderr


def test_threads(folder, tmp_path):
    before = torch.get_num_threads()
    try:
        result = tune(folder, "-o", tmp_path / "tuned.toml", "--target-kl", 1, "--threads", 2)
        assert result.exit_code == ExitStatus.OK, result.stderr
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_table_shows_which_layers_got_what(folder, tmp_path):
    path = tmp_path / "tuned.toml"
    result = tune(folder, "-o", path, "--target-kl", 1.0, "--tokens", 192, "--preset", "k2v2")
    assert result.exit_code == ExitStatus.OK, result.stderr
    assert "layers 0-1" in result.stdout
    assert "2-bit keys, 2-bit values" in result.stdout
    assert re.search("key scales +yes", result.stdout)
    assert result.stdout.splitlines()[-1].endswith(f"--config {path}")
    config = choose_config(ConfigFile.read(path), fields={}).base
    assert config.sinks == CompressionConfig.preset("k2v2").sinks


def test_without_key_scales_the_engine_shall_have_none(folder, tmp_path):
    path = tmp_path / "tuned.toml"
    options = ("--target-bits", 3.5, "--tokens", 192, "--no-scale-keys")
    result = tune(folder, "-o", path, *options)
    assert result.exit_code == ExitStatus.OK, result.stderr
    assert re.search("key scales +no", result.stdout)
    assert result.stdout.splitlines()[-1].endswith(f"--config {path} --no-scale-keys")
    assert "# without key scales\n" in path.read_text()
    result = tune(folder, "-o", path, *options, "--force", "--json")
    assert not json.loads(result.stdout)["has_key_scales"]


def test_one_target_is_needed(folder, tmp_path):
    for targets in ((), ("--target-bits", 4, "--target-kl", 0.1)):
        result = tune(folder, "-o", tmp_path / "it.toml", *targets)
        assert result.exit_code == ExitStatus.USAGE


def test_wrong_input_is_refused_before_anything_is_measured(folder, tmp_path):
    there, absent, onnx = (tmp_path / name for name in ("it.toml", "absent", "model.onnx"))
    there.touch()
    onnx.touch()
    target = ("--target-bits", 4)
    refused(tune(folder, "-o", there, *target), "E203", "--force")
    refused(tune(folder, "-o", absent / "it.toml", *target), "E201", "no folder")
    refused(tune(absent, "-o", tmp_path / "new.toml", *target), "E201")
    refused(tune(onnx, "-o", tmp_path / "new.toml", *target), "E302", "Hugging Face folder")
    preset = ("--preset", "fp16")
    refused(tune(folder, "-o", tmp_path / "new.toml", *target, *preset), "E503", "16 bits")
    refused(tune(folder, "-o", tmp_path / "new.toml", *target, "--preset", "k5"), "E101")
    assert not (tmp_path / "new.toml").exists()


def test_what_cannot_be_reached_is_refused(folder, tmp_path):
    path = tmp_path / "it.toml"
    result = tune(folder, "-o", path, "--target-bits", 1, "--tokens", 192)
    refused(result, "E503", "ask for 2.5")
    assert not path.exists()
