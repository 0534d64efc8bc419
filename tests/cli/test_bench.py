"""`gear bench`: output, rows, exit status."""

import json

import pytest
from typer.testing import CliRunner

from gear_trt.bench import dependencies, operator
from gear_trt.cli.main import app
from gear_trt.errors import ExitStatus
from tests.bench.conftest import small_arrays  # noqa: F401 - a fixture
from tests.runtime.folders import write_engine

TINY = ("--heads", "4/2x32", "--context", "70,150", "--rounds", 2, "--config", "k4v4")


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def refused(result, code, status):
    assert result.exit_code == status
    assert f"error[{code}]" in result.stderr
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_ops_prints_a_table_per_point():
    result = bench("ops", *TINY, "--peers", "ort-fp32,ort-int8")
    assert result.exit_code == ExitStatus.OK
    for text in (
        "heads 4/2x32, context 70, batch 1, decode, 1 thread",
        "context 150",
        "gear k4v4",
        "ort-fp32",
        "ort-int8 per_",
        "1.00x",
        "GB/s",
    ):
        assert text in result.stdout
    assert "context 150" in result.stderr, "progress goes to stderr"
    assert max(map(len, result.stdout.splitlines())) <= 200


def test_ops_json_is_one_object():
    report = json.loads(bench("ops", *TINY, "--json").stdout)
    assert report["schema"] == "gear.bench/1"
    assert report["benchmark"] == "ops"
    assert report["environment"]["cpu"]
    candidates = [row["candidate"] for row in report["rows"] if row["context"] == 70]
    assert candidates == ["gear k4v4", "ort-fp32", "ort-fp16", "ort-int8", "ort-int4"]
    assert report["refusals"] == {}
    assert report["comparison"] == []


def test_ops_records_rows_and_compares_with_them(tmp_path):
    rows = tmp_path / "rows.jsonl"
    assert bench("ops", *TINY, "--out", rows).exit_code == ExitStatus.OK
    assert len(rows.read_text().splitlines()) == 10
    result = bench("ops", *TINY, "--compare", rows)
    assert "against the old rows" in result.stdout
    report = json.loads(bench("ops", *TINY, "--compare", rows, "--json").stdout)
    assert len(report["comparison"]) == 10
    assert all(item["speedup"] > 0 for item in report["comparison"])


def test_ops_quick_replaces_contexts_and_rounds(monkeypatch):
    plans = []
    monkeypatch.setattr(operator, "run", lambda plan, progress: plans.append(plan) or [])
    assert bench("ops", "--quick").exit_code == ExitStatus.OK
    (plan,) = plans
    assert [point.context for point in plan.points] == [1024, 4096]
    assert plan.rounds == 5


def test_ops_that_a_peer_refuses():
    result = bench("ops", *TINY, "--batch", 2, "--new", 5, "--peers", "ort-fp32")
    assert result.exit_code == ExitStatus.OK
    assert "ort-fp32 did not run: batch_size must be 1" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--heads", "32"), "E503"),
        (("--heads", "9/2x64"), "E503"),
        (("--context", "4m"), "E503"),
        (("--context", "0"), "E503"),
        (("--batch", "0"), "E503"),
        (("--new", "x"), "E503"),
        (("--threads", "0"), "E503"),
        (("--peers", "ort-fp64"), "E503"),
        (("--cpu", "avx1024"), "E503"),
        (("--baseline", "nobody"), "E503"),
        (("--config", "k5v5"), "E101"),
        (("--config", "k4v4+rank=99"), "E102"),
        (("--config", "k4v4+rank"), "E503"),
        (("--compare", "no-such-file.jsonl"), "E201"),
        (("--out", "no-such-folder/rows.jsonl"), "E201"),
        (("--context", "1000000k"), "E503"),
    ],
)
def test_ops_wrong_requests(arguments, code):
    refused(bench("ops", *arguments), code, ExitStatus.FAILED)


def test_wrong_usage():
    assert bench("ops", "--rounds", 0).exit_code == ExitStatus.USAGE
    assert bench("ops", "--no-such-flag").exit_code == ExitStatus.USAGE
    assert bench("model").exit_code == ExitStatus.USAGE


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engine") / "toy", tokenizer=False)


def test_model(engine, tmp_path):
    rows = tmp_path / "rows.jsonl"
    result = bench("model", engine, "--context", "80,150", "--tokens", 10, "--out", rows)
    assert result.exit_code == ExitStatus.OK
    for text in ("gear k4v4", "ort-fp32", "decode/s", "1.00x"):
        assert text in result.stdout
    assert len(rows.read_text().splitlines()) == 4
    report = json.loads(
        bench("model", engine, "--context", 80, "--tokens", 10, "--json", "--compare", rows).stdout
    )
    assert report["schema"] == "gear.bench/1"
    assert [row["candidate"] for row in report["rows"]] == ["gear k4v4", "ort-fp32"]
    assert len(report["comparison"]) == 2

    plotted = bench("plot", rows, "-o", tmp_path / "plots")
    assert plotted.exit_code == ExitStatus.OK
    (file,) = plotted.stdout.split()
    assert file.endswith("tokens_context.svg")
    assert (tmp_path / "plots" / "tokens_context.svg").is_file()
    report = json.loads(bench("plot", rows, "-o", tmp_path / "plots", "--json").stdout)
    assert report["files"] == [file]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--context", "1m"), "E503"),
        (("--context", "9k"), "E503"),
        (("--tokens", 1), "E503"),
        (("--gguf", "no-such-file.gguf", "--context", 150), "E201"),
    ],
)
def test_model_wrong_requests(engine, arguments, code):
    refused(bench("model", engine, *arguments), code, ExitStatus.FAILED)


def test_model_that_is_no_engine(tmp_path):
    refused(bench("model", tmp_path), "E201", ExitStatus.FAILED)


def test_plot_of_nothing(tmp_path):
    refused(bench("plot", tmp_path / "none.jsonl"), "E201", ExitStatus.FAILED)
    (tmp_path / "rows.jsonl").write_text("not a row\n")
    refused(bench("plot", tmp_path / "rows.jsonl"), "E503", ExitStatus.FAILED)
    (tmp_path / "rows.jsonl").write_text("")
    refused(bench("plot", tmp_path / "rows.jsonl"), "E503", ExitStatus.FAILED)


@pytest.mark.parametrize(
    ("command", "module", "hint"),
    [
        (("ops",), "onnxruntime", "gear-trt[cpu]"),
        (("model", "engine"), "onnxruntime", "gear-trt[cpu]"),
        (("plot", "rows.jsonl"), "matplotlib", "gear-trt[plot]"),
    ],
)
def test_missing_packages(monkeypatch, command, module, hint):
    monkeypatch.setattr(dependencies, "is_installed", lambda name: name != module)
    result = bench(*command)
    refused(result, "E601", ExitStatus.ENVIRONMENT)
    assert hint in result.stderr
