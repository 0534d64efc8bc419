"""`gear eval`: output, rows, exit status."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from gear_trt.bench import dependencies
from gear_trt.cli.main import app
from gear_trt.errors import ExitStatus
from tests.runtime.folders import write_engine
from tests.torch.networks import network

TINY = ("--context", 150, "--sequences", 2)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .\n"


def evaluate(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def report(*arguments):
    result = evaluate(*arguments, "--json")
    assert result.exit_code == ExitStatus.OK, result.output
    return json.loads(result.stdout)


def refused(result, code, status=ExitStatus.FAILED):
    assert result.exit_code == status, result.output
    assert f"error[{code}]" in result.stderr
    assert "hint:" in result.stderr
    assert not result.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    network("llama").save_pretrained(folder)
    vocabulary = {letter: 3 + index for index, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **vocabulary}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return folder


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engine") / "toy")


def test_text(checkpoint, prose, tmp_path):
    rows = tmp_path / "rows.jsonl"
    result = evaluate(
        "text", checkpoint, prose, *TINY, "--config", "k4v4", "--config", "k2v2+rank=2",
        "--peers", "llama-q4_0,ort-int8", "--out", rows,
    )  # fmt: skip
    assert result.exit_code == ExitStatus.OK, result.output
    for wanted in ("k2v2+rank=2", "llama-q4_0 (simulated)", "ppl", "172 tokens of prose.txt"):
        assert wanted in result.stdout
    recorded = [json.loads(line) for line in rows.read_text().splitlines()]
    names = [row["candidate"] for row in recorded]
    assert names == ["k4v4", "k2v2+rank=2", "llama-q4_0", "ort-int8"]
    assert all(row["kl"] > 0 and row["cpu"] for row in recorded)

    plotted = evaluate("plot", rows, "-o", tmp_path / "plots")
    assert plotted.exit_code == ExitStatus.OK, plotted.output
    assert (tmp_path / "plots" / "kl_bytes.svg").is_file()


def test_text_with_key_scales(checkpoint, prose):
    configs = ("--config", "k2v2", "--config", "k2v2+rank=2")
    plain, scaled = (
        report("text", checkpoint, prose, *TINY, *configs, *options)["rows"]
        for options in (("--no-scale-keys",), ())
    )
    names = ["k2v2", "k2v2+rank=2"]
    assert [row["candidate"] for row in scaled] == names
    assert [row["candidate"] for row in plain] == [f"{name}, keys unscaled" for name in names]
    for one, other in zip(plain, scaled, strict=True):
        assert one["kl"] != other["kl"]
        assert one["bits_per_element"] == other["bits_per_element"]


def test_peers_have_the_largest_buffer_of_ours(checkpoint, prose):
    configs = ("--config", "k4v4", "--config", "near-lossless", "--peers", "llama-q8_0")
    rows = report("text", checkpoint, prose, *TINY, "--context", 200, *configs)["rows"]
    assert [row["buffer"] for row in rows] == [64, 128, 128]


def test_text_with_a_config_file(checkpoint, prose, tmp_path):
    file = tmp_path / "tuned.toml"
    file.write_text('preset = "k2v2"\n[layers."0"]\nbits = 8\n')
    found = report("text", checkpoint, prose, *TINY, "--config", file)
    assert found["schema"] == "gear.eval/1"
    (row,) = found["rows"]
    assert row["config"]["key_bits"] == 2
    assert row["layer_configs"]["0"]["key_bits"] == 8


def test_text_of_an_engine(engine, prose):
    (row,) = report("text", engine, prose, "--context", 100, "--sequences", 1)["rows"]
    assert row["candidate"] == "toy, keys unscaled"
    assert row["kind"] == "gear"
    assert 0 < row["kl"] < 1
    assert row["cache_bytes_per_token"] > row["bytes_per_token"]


def test_layers(checkpoint, prose, tmp_path):
    rows = tmp_path / "rows.jsonl"
    found = report(
        "layers", checkpoint, prose, "--context", 150, "--config", "k4v4", "--peers", "llama-q8_0",
        "--out", rows, "--no-scale-keys",
    )["rows"]  # fmt: skip
    assert [(row["candidate"], row["layer"]) for row in found] == [
        ("k4v4, keys unscaled", 0), ("k4v4, keys unscaled", 1),
        ("llama-q8_0", 0), ("llama-q8_0", 1),
    ]  # fmt: skip
    assert all(0 < row["output_error"] < 0.1 for row in found)
    assert evaluate("plot", rows, "-o", tmp_path).stdout.strip().endswith("layers.svg")


def test_greedy(checkpoint, prose):
    (row,) = report(
        "greedy", checkpoint, prose, "--config", "exact", "--prompts", 2, "--prompt-tokens", 80,
        "--tokens", 5,
    )["rows"]  # fmt: skip
    assert (row["agreement"], row["identical"]) == (5, 2)


def test_passkey(checkpoint):
    rows = report("passkey", checkpoint, "--context", "400", "--depth", "0,1")["rows"]
    assert [(row["candidate"], row["depth"]) for row in rows] == [
        ("uncompressed", 0), ("uncompressed", 1), ("k4v4", 0), ("k4v4", 1),
    ]  # fmt: skip
    assert all(len(row["key"]) == 5 for row in rows)


def test_questions(checkpoint, tmp_path):
    file, examples = tmp_path / "questions.jsonl", tmp_path / "examples.txt"
    file.write_text('{"question": "one and two", "answer": "it is\\n#### 3"}\n')
    examples.write_text("question. one and one\n2\n")
    rows = report(
        "questions", checkpoint, file, "--examples", examples, "--max-new-tokens", 4
    )["rows"]  # fmt: skip
    assert [row["candidate"] for row in rows] == ["uncompressed", "k4v4"]
    assert rows[0]["expected"] == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("text", "no-such-model", "{prose}"), "E201"),
        (("text", "{checkpoint}", "no-such-text.txt"), "E201"),
        (("text", "{checkpoint}", "{prose}", "--context", "100000"), "E503"),
        (("text", "{checkpoint}", "{prose}", "--context", "60"), "E503"),
        (("text", "{checkpoint}", "{prose}", "--context", "1500", "--sequences", "1"), "E503"),
        (("text", "{checkpoint}", "{prose}", "--config", "k5v5"), "E101"),
        (("text", "{checkpoint}", "{prose}", "--config", "none.toml"), "E201"),
        (("text", "{checkpoint}", "{prose}", "--peers", "kivi-9"), "E503"),
        (("text", "{engine}", "{prose}", "--config", "k4v4"), "E503"),
        (("text", "{engine}", "{prose}", "--no-scale-keys"), "E503"),
        (("text", "{engine}", "{prose}", "--context", "100", "--peers", "fp8-e4m3"), "E503"),
        (("layers", "{engine}", "{prose}"), "E302"),
        (("passkey", "{checkpoint}", "--depth", "2"), "E503"),
        (("passkey", "{checkpoint}", "--context", "10"), "E503"),
        (("passkey", "{checkpoint}", "--context", "1m"), "E503"),
        (("questions", "{checkpoint}", "{prose}", "--examples", "{prose}"), "E503"),
        (("plot", "{prose}"), "E503"),
    ],
)
def test_wrong_requests(arguments, code, checkpoint, prose, engine):
    paths = {"checkpoint": checkpoint, "prose": prose, "engine": engine}
    status = ExitStatus.UNSUPPORTED if code == "E302" else ExitStatus.FAILED
    refused(evaluate(*(item.format(**paths) for item in arguments)), code, status)


@pytest.mark.parametrize(
    ("command", "module"),
    [(("harness", "model", "task"), "lm_eval"), (("plot", "rows.jsonl"), "matplotlib")],
)
def test_missing_packages(monkeypatch, command, module):
    monkeypatch.setattr(dependencies, "is_installed", lambda name: name != module)
    refused(evaluate(*command), "E601", ExitStatus.ENVIRONMENT)
