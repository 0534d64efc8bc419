"""`gear-export --target-bits`: layers are tuned, then exported, and the engine says so."""

import gc
import json
import re
import weakref
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from gear_trt.cli.export import app
from gear_trt.cli.main import app as gear
from gear_trt.errors import ErrorCode, ExitStatus, GearError
from gear_trt.eval.checkpoint import Checkpoint
from gear_trt.export import TuningTarget, export_model, pipeline
from gear_trt.runtime.manifest import Manifest
from gear_trt.spec import CompressionConfig, ModelConfig, bits_per_element
from gear_trt.spec.config_file import ConfigFile, choose_config
from gear_trt.tune import checkpoint as tuned_checkpoint
from tests.torch.networks import network

HEAD_DIM = 32
SHORT = ("--tokens", 192)
BASE = ("--preset", "small", "--no-fit-ranges")


def invoke(app, *arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


gear_export = partial(invoke, app)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    network("llama", num_hidden_layers=3).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """One export, and its folder."""
    folder = tmp_path_factory.mktemp("engines") / "engine"
    result = gear_export(model, "-o", folder, *BASE, "--target-bits", 3.4, *SHORT)
    assert result.exit_code == ExitStatus.OK, result.stderr
    return result, folder


@pytest.fixture
def never_tuned(monkeypatch):
    """Fails where a model is loaded to be tuned."""
    monkeypatch.setattr(Checkpoint, "network", lambda self: pytest.fail(f"{self.name} is loaded"))


def test_layers_are_those_of_gear_tune(model, run, tmp_path):
    path = tmp_path / "tuned.toml"
    options = ("--preset", "small", "--target-bits", 3.4)
    assert invoke(gear, "tune", model, "-o", path, *options, *SHORT).exit_code == ExitStatus.OK
    _, folder = run
    got = [layer.config for layer in Manifest.read(folder).layers]
    tuned = choose_config(ConfigFile.read(path), fields={}).of_layers(len(got))
    assert len(set(got)) > 1
    assert [config.model_copy(update={"fit_ranges": 1}) for config in got] == list(tuned)


def test_the_bits_are_kept_and_flags_have_the_rest(run):
    _, folder = run
    configs = [layer.config for layer in Manifest.read(folder).layers]
    assert sum(bits_per_element(config, HEAD_DIM) for config in configs) / len(configs) <= 3.4
    assert {(config.chunk, config.fit_ranges) for config in configs} == {(128, 0)}


def test_the_engine_says_how_its_layers_were_chosen(run):
    result, folder = run
    facts = Manifest.read(folder).tuning
    assert (facts.target_bits, facts.target_kl, facts.text) == (3.4, None, None)
    assert facts.kl > 0
    assert facts.tokens == 2 * (192 - 64)
    says = r"to 3\.4 bits per element: KL \d\.\d{5} ± \d\.\d{5} on 256 tokens of text that the"
    assert re.search(rf"tuned +{says}", result.stdout)
    assert re.search(rf"tuned +{says}", invoke(gear, "inspect", folder).stdout)
    assert re.search(f"layers are tuned {says}", (folder / "report.md").read_text())
    for fields in (
        json.loads(invoke(gear, "inspect", folder, "--json").stdout),
        json.loads((folder / "report.json").read_text()),
    ):
        assert fields["tuning"] == facts.model_dump()


def test_progress_and_time_have_a_stage_of_their_own(run):
    result, folder = run
    lines = result.stderr.splitlines()
    assert lines[0] == "tuning: loading"
    assert lines[lines.index("tuning: verifying") + 1] == "loading model"
    assert json.loads((folder / "report.json").read_text())["seconds"]["tune"] > 0


def test_the_measured_model_is_gone_before_the_export_loads_its_own(model, tmp_path, monkeypatch):
    measured = []
    load = Checkpoint.network

    def watched(self):
        loaded = load(self)
        measured.append(weakref.ref(loaded))
        return loaded

    class ReachedError(Exception):
        pass

    def arrived(*_):
        assert [reference() for reference in measured] == [None]
        raise ReachedError

    gc.disable()  # no lucky collection
    try:
        monkeypatch.setattr(Checkpoint, "network", watched)
        monkeypatch.setattr(pipeline, "open_source", arrived)
        target = TuningTarget(kl=1, tokens=192)
        with pytest.raises(ReachedError):
            export_model(model, tmp_path / "engine", config=CompressionConfig(), tuning=target)
    finally:
        gc.enable()


def test_flags_reach_the_tuner(model, tmp_path, monkeypatch):
    asked = {}

    def spy(checkpoint, base, target, *, scale_keys, progress):
        del checkpoint, progress
        asked.update(base=base, target=target, scale_keys=scale_keys)
        raise GearError(ErrorCode.BAD_REQUEST, "enough", hint="none")

    monkeypatch.setattr(tuned_checkpoint, "tune_checkpoint", spy)
    text, config = tmp_path / "my.txt", tmp_path / "gear.toml"
    config.write_text('preset = "k3v2"\nsinks = 2\n')
    before = torch.get_num_threads()
    try:
        measured = ("--target-kl", 0.5, "--text", text, "--tokens", 300, "--threads", 2)
        given = ("--config", config, "--no-scale-keys", "--power-iters", 3)
        result = gear_export(model, "-o", tmp_path / "engine", *measured, *given)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert result.exit_code == ExitStatus.FAILED
    assert asked == {
        "base": CompressionConfig.preset("k3v2", sinks=2, power_iters=3),
        "target": TuningTarget(kl=0.5, text=text, tokens=300),
        "scale_keys": False,
    }


@pytest.mark.usefixtures("never_tuned")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--key-bits", 3], "error[E102]: key_bits is set, and tuning chooses it"),
        (["--outliers", 0], "hint: leave out --outliers, and outliers of a config file"),
        (["--layer", "0:bits=8"], "error[E102]: single layers have configs of their own"),
        (["--preset", "fp16"], "error[E503]: a config of 16 bits cannot be tuned"),
    ],
)
def test_what_does_not_go_with_a_target_is_refused(model, tmp_path, flags, message):
    result = gear_export(model, "-o", tmp_path / "engine", "--target-bits", 4, *flags)
    assert result.exit_code == ExitStatus.FAILED
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("never_tuned")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("group_size = 64", "group_size is set, and tuning chooses it"),
        ('[layers."0-1"]\nbits = 8', "single layers have configs of their own"),
    ],
)
def test_a_config_file_has_only_what_tuning_leaves_alone(model, tmp_path, content, message):
    (tmp_path / "gear.toml").write_text(content)
    config = ("--config", tmp_path / "gear.toml")
    result = gear_export(model, "-o", tmp_path / "engine", "--target-bits", 4, *config)
    assert result.exit_code == ExitStatus.FAILED
    assert message in result.stderr


def test_onnx_files_are_not_tuned(tmp_path):
    path = tmp_path / "model.onnx"
    path.touch()
    for run in (
        gear_export(path, "-o", tmp_path / "engine", "--target-bits", 4),
        invoke(gear, "tune", path, "-o", tmp_path / "it.toml", "--target-bits", 4),
    ):
        assert run.exit_code == ExitStatus.UNSUPPORTED
        assert f"error[E302]: {path} cannot be tuned" in run.stderr
        assert "--config" in run.stderr.splitlines()[-1]


@pytest.mark.parametrize("flag", ["--text", "--tokens", "--threads"])
def test_flags_of_tuning_need_a_target(model, tmp_path, flag):
    result = gear_export(model, "-o", tmp_path / "engine", flag, 500)
    assert result.exit_code == ExitStatus.FAILED
    assert f"error[E102]: {flag} needs a target" in result.stderr


@pytest.mark.parametrize("flags", [["--dry-run"], ["-o", "engine", "--target-kl", 1]])
def test_usage(model, flags):
    result = gear_export(model, "--target-bits", 4, *flags)
    assert result.exit_code == ExitStatus.USAGE
    assert "--target-bits, --target-kl" in result.stderr


def test_layers_given_in_python_are_refused_too(model, tmp_path):
    mixed = ModelConfig(CompressionConfig(), ((range(1), CompressionConfig(rank=2)),))
    with pytest.raises(GearError, match="single layers") as refused:
        export_model(model, tmp_path / "engine", config=mixed, tuning=TuningTarget(bits=4))
    assert refused.value.code is ErrorCode.BAD_CONFIG
