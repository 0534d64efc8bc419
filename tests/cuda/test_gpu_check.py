"""`make gpu-check` as far as it needs no GPU: every step runs here on the emulated library."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import (
    gpu_cases,
    gpu_check,
    gpu_engines,
    gpu_sanitizer,
    gpu_shapes,
    gpu_timing,
    records,
)
from benchmarks.gpu_ceiling import read_ceiling
from benchmarks.gpu_compression import compression_rows
from benchmarks.gpu_decode import decode_rows
from benchmarks.gpu_kernels import DeviceKernels, Guarded
from benchmarks.gpu_prefill import prefill_rows
from benchmarks.gpu_report import judge, summary, with_ratio
from benchmarks.gpu_shapes import CONFIGS, SHAPES, TARGETS, Shape
from benchmarks.gpu_timing import Machine, Timing, time_clock
from gear_trt.errors import ErrorCode, ExitStatus, GearError
from gear_trt.spec import bits_per_element
from tests.onnxruntime.emulated import emulated_engine
from tests.runtime.folders import write_engine

REPOSITORY = Path(__file__).parents[2]
CPU = torch.device("cpu")


def gpu_check_process(*options):
    return subprocess.run(
        [sys.executable, *options, "-m", "benchmarks.gpu_check"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_does_nothing():
    recorded = records.RESULTS / "gpu.jsonl"
    before = recorded.read_bytes() if recorded.exists() else None
    result = gpu_check_process("-S")  # without site-packages: the bare Python of a machine
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert "no NVIDIA GPU" in result.stdout
    assert (recorded.read_bytes() if recorded.exists() else None) == before


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "count_gpus", lambda: 1)
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: name == "torch" or None)
    assert gpu_check.main() == ExitStatus.ENVIRONMENT
    assert "lacks numpy, pydantic, triton" in capsys.readouterr().out


# --- The case table -------------------------------------------------------------------------------

ROWS = (
    "compress-bits-4-3",
    "attention-batch-ragged",
    "attention-long-window-20-new-70",
    "steps-k4v4-2",
)


def test_rows_of_the_table_pass(emulated, capsys):
    assert gpu_cases.run_table(CPU, ROWS) == []
    assert "4 rows of the case table" in capsys.readouterr().out


def test_a_wrong_result_is_a_failure(emulated, monkeypatch):
    attention = DeviceKernels.attention

    def wrong(self, *args, out=None, **kwargs):
        result = attention(self, *args, out=out, **kwargs)
        result *= 1.01
        return result

    monkeypatch.setattr(DeviceKernels, "attention", wrong)
    (failure,) = gpu_cases.run_table(CPU, ["attention-batch-ragged"])
    assert failure.row == "attention-batch-ragged"
    assert failure.text


def test_a_refusal_is_a_failure(emulated, monkeypatch):
    monkeypatch.setitem(gpu_cases.TOLERANCE, "float32", -1.0)
    failures = gpu_cases.run_table(CPU, ["attention-bits-4-4"])
    assert {failure.row for failure in failures} == {
        "attention-bits-4-4-new-1", "attention-bits-4-4-new-40",
    }  # fmt: skip


def test_a_row_that_breaks_down_is_a_failure_and_the_others_run(emulated, monkeypatch):
    compress = DeviceKernels.compress_pages
    broken = []

    def break_once(self, *args, **kwargs):
        if not broken:
            broken.append(True)
            raise KeyError("surprise")
        return compress(self, *args, **kwargs)

    monkeypatch.setattr(DeviceKernels, "compress_pages", break_once)
    (failure,) = gpu_cases.run_table(CPU, ["compress-bits-4-3", "compress-bits-3-2"])
    assert failure.text == "KeyError: 'surprise'"


def test_rows_that_cannot_be_listed_are_a_failure(capsys):
    def rows():
        yield "fine", lambda: None
        raise OSError("no compiler")

    (failure,) = gpu_cases.run_rows(rows())
    assert (failure.row, failure.text) == ("the list of rows", "OSError: no compiler")
    assert "1 rows of the case table" in capsys.readouterr().out


@pytest.mark.parametrize("offset", [-1, 12])
def test_writes_outside_an_array_are_noticed(offset):
    guarded = Guarded(np.zeros(3, np.float32), CPU)
    guarded.bring_back()
    guarded._raw[gpu_cases_guard() + offset] = 0
    with pytest.raises(AssertionError, match="outside an array"):
        guarded.bring_back()


def gpu_cases_guard():
    from tests.plugins.checks import GUARD_BYTES

    return GUARD_BYTES


def test_the_sanitizer_inspects_rows_that_exist():
    names = [name for name, _ in gpu_cases._rows(CPU)]
    for row in gpu_sanitizer.ROWS:
        assert any(name.startswith(row) for name in names), row


@pytest.mark.parametrize(
    ("status", "output", "verdict"),
    [
        (0, "ERROR SUMMARY: 0 errors", "clean"),
        (99, "Invalid __global__ write\nERROR SUMMARY: 1 error", "faults"),
        (1, "FAILED attention-new-1: NMSE", "faults"),
        (1, "========= Error: Device not supported. Please refer to", "not run"),
    ],
)
def test_verdicts_of_the_sanitizer(status, output, verdict):
    assert gpu_sanitizer.judged("memcheck", status, output).verdict == verdict


# --- Engines --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine_folder(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engines") / "engine", tokenizer=False)


class Distorted:
    """An engine whose logits are wrong from the third step on."""

    def __init__(self, folder):
        self._engine = emulated_engine(folder)
        self._steps = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._engine.close()

    def step(self, tokens):
        self._steps += 1
        logits = self._engine.step(tokens)
        return logits if self._steps < 3 else logits[:, ::-1]


def refuse(folder):
    raise GearError(ErrorCode.MISSING_DEPENDENCY, "there is none", hint="install it")


def break_down(folder):
    raise RuntimeError("TensorRT refuses to run the engine")


def test_engines_are_decoded_beside_the_cpu(engine_folder, emulated):
    backends = {
        "emulated": emulated_engine,
        "distorted": Distorted,
        "missing": refuse,
        "broken": break_down,
    }
    outcomes = gpu_engines.run_backends(engine_folder, backends, prompt_tokens=70)
    verdicts = {outcome.backend: outcome.verdict for outcome in outcomes}
    assert verdicts == {
        "emulated": "ran", "distorted": "failed", "missing": "not run", "broken": "failed",
    }  # fmt: skip
    rows = {outcome.backend: outcome.row() for outcome in outcomes}
    assert rows["emulated"]["equal"] >= 0.9 * gpu_engines.NEW_TOKENS
    assert rows["emulated"]["nmse"] < 1e-4
    assert rows["distorted"]["nmse"] > 0.1
    assert rows["missing"]["text"] == "there is none (install it)"
    assert "RuntimeError: TensorRT refuses" in rows["broken"]["text"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_every_backend_of_a_machine_without_a_gpu_says_why(engine_folder):
    for name, open_engine in gpu_engines.gpu_backends().items():
        with pytest.raises(GearError) as caught:
            open_engine(engine_folder)
        assert caught.value.hint, name


def test_engines_need_packages(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: name == "onnx" or None)
    assert gpu_check.run_engines() == []
    assert "lacks onnxruntime, safetensors, tokenizers, transformers" in capsys.readouterr().out


# --- Bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_of_a_step_are_those_of_its_pages_rows_and_activations(name):
    config = CONFIGS[name]
    shape = Shape(batch=8, context=32768, group=4)
    page_bits = bits_per_element(config, 128) * 2 * 128 * 8 * 8 * 32768
    rows = 8 * 8 * 2 * (4 + 32) * 128 * 2
    activations = 8 * (32 + 16) * 128 * 2
    assert gpu_shapes.decode_bytes(shape, config) == page_bits / 8 + rows + activations
    fp16 = 8 * (4 + 32768 + 32) * 8 * 2 * 128 * 2 + activations
    assert gpu_shapes.fp16_bytes(shape, config) == fp16


def test_all_configs_hold_the_same_past():
    for shape in SHAPES:
        assert len({shape.past(config) for config in CONFIGS.values()}) == 1


def test_shapes_are_those_of_the_targets():
    assert {(shape.batch, shape.context) for shape in SHAPES} == {
        (1, 4096), (1, 32768), (8, 32768), (64, 4096), (2, 131072),
    }  # fmt: skip
    large = [shape for shape in SHAPES if shape.total_tokens >= 256 * 1024]
    assert len(large) == 9
    assert {shape.num_heads for shape in SHAPES} == {8, 32, 64}


def test_a_call_rotates_over_more_than_twice_the_cache():
    machine = Machine(CPU, "", 50 * 2**20, time_clock)
    for size in (1, 5 * 2**20, 200 * 2**20):
        assert machine.copies(size) * size >= 2 * machine.cache_bytes


# --- Measuring ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(emulated):
    """Rows of every kind, at sizes that take seconds here."""
    machine = Machine(CPU, "cpu", 1 << 16, time_clock)
    tiny = [
        Shape(batch, 128, group, kv_heads=2, head_dim=64) for batch in (1, 8) for group in (4, 1)
    ]
    rows = []
    sizes = {"kv_heads": 2, "head_dim": 64}
    steps = {
        "ceiling": lambda: [read_ceiling(machine, 1 << 20)],
        "decode": lambda: decode_rows(machine, tiny),
        "compression": lambda: compression_rows(machine, (1, 8), rows, **sizes),
        "prefill": lambda: prefill_rows(machine, (200,), **sizes),
    }
    return list(gpu_check.run_steps(steps, rows, {"gpu": "none"}))


def of_kind(rows, kind):
    return [row for row in rows if row["kind"] == kind]


def test_every_kind_of_row_is_measured(measured):
    counts = {row["kind"]: len(of_kind(measured, row["kind"])) for row in measured}
    configs = len(CONFIGS)
    assert counts == {
        "ceiling": 1, "decode": 4 * configs, "peer": 4, "compress": 2 * configs, "prefill": 1,
    }  # fmt: skip
    assert not [row for row in measured if "failure" in row]


def test_decode_rows_say_how_fast_and_how_exact(measured):
    for row in of_kind(measured, "decode"):
        assert row["us_p10"] <= row["us"] <= row["us_p90"]
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["us"] / 1e3)
        assert row["ratio"] == pytest.approx(row["best_fp16_us"] / row["us"])
        assert row["best_fp16"] == "sdpa-flash"
        assert row["ceiling_share"] > 0
        bound = 0.02 if row["config"].startswith("k4") else 0.4
        assert 1e-6 < row["nmse"] < bound, row
    for row in of_kind(measured, "peer"):
        assert row["nmse"] < 1e-5


def test_corrections_pay_in_quality(measured):
    error = {
        row["config"]: row["nmse"]
        for row in of_kind(measured, "decode")
        if (row["batch"], row["group"]) == (8, 4)
    }
    assert error["k4v4-rank2-outliers2"] < error["k4v4"] < error["k2v2"]


def test_compression_is_set_against_the_steps_between(measured):
    steps = {
        (row["config"], row["batch"]): row["us"]
        for row in of_kind(measured, "decode")
        if row["group"] == 4
    }
    for row in of_kind(measured, "compress"):
        share = row["us"] / 64 / steps[row["config"], row["batch"]]
        assert row["decode_share"] == pytest.approx(share)


def test_rows_are_recorded_from_the_source_tree(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    path = gpu_check.record(measured)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len(measured)
    assert all("commit" in line and "versions" in line for line in lines)


@pytest.mark.parametrize(
    ("failures", "verdict", "is_clean", "status"),
    [
        ([], "ran", True, ExitStatus.OK),
        ([gpu_cases.Failure("attention-batch-ragged", "NMSE")], "ran", True, ExitStatus.FAILED),
        ([], "failed", True, ExitStatus.FAILED),
        ([], "ran", False, ExitStatus.FAILED),
    ],
)
def test_everything_runs_whatever_failed(
    failures, verdict, is_clean, status, measured, monkeypatch, tmp_path, capsys
):
    steps = {"measured": lambda: measured, "engine": lambda: [{"kind": "e", "verdict": verdict}]}
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    for name, fake in {
        "_build": lambda: None,
        "_run_tables": lambda built: failures,
        "_steps": lambda rows: steps,
        "_is_clean": lambda: is_clean,
    }.items():
        monkeypatch.setattr(gpu_check, name, fake)
    assert gpu_check.check() == status
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert len(rows) == len(measured) + 1
    assert {row["failed_cases"] for row in rows} == {len(failures)}
    assert {row["gpu"] for row in rows} == {"a GPU"}
    assert f"{len(rows)} rows in " in capsys.readouterr().out


def test_a_build_that_fails_ends_it(monkeypatch, capsys):
    def fail():
        raise RuntimeError("nvcc failed")

    monkeypatch.setattr(gpu_check, "_build", fail)
    assert gpu_check.check() == ExitStatus.FAILED
    assert "nvcc failed" in capsys.readouterr().out


def test_what_says_most_comes_first(monkeypatch):
    monkeypatch.setattr(gpu_timing, "this_gpu", lambda: Machine(CPU, "cpu", 1, time_clock))
    names = list(gpu_check._steps([]))
    assert names[:2] == ["how fast the GPU reads", "decode"]
    assert names[-1] == "engines"
    assert len(names) == 6


def test_rows_are_written_before_the_next_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    written = []

    def look():
        for number in range(3):
            yield {"kind": "look", "number": number}
            written.append(len((tmp_path / "gpu.jsonl").read_text().splitlines()))

    gpu_check.record(look())
    assert written == [1, 2, 3]


def test_a_step_that_breaks_keeps_its_rows_and_lets_the_others_run(capsys):
    def broken():
        yield {"kind": "first"}
        raise RuntimeError("an illegal memory access was encountered")

    rows = []
    steps = {"broken": broken, "whole": lambda: [{"kind": "last"}]}
    found = list(gpu_check.run_steps(steps, rows, {"failed_cases": 2}))
    assert found == rows
    assert [row["kind"] for row in rows] == ["first", "step", "last"]
    assert (rows[1]["step"], rows[1]["verdict"]) == ("broken", "failed")
    assert all(row["failed_cases"] == 2 for row in rows)
    assert "FAILED broken: RuntimeError: an illegal memory access" in capsys.readouterr().out


def test_the_summary_names_every_row_and_target(measured):
    text = summary(measured)
    assert text.count("| k4v4-rank2 |") == 4
    for target in TARGETS:
        assert f"| {target.name} |" in text


# --- Targets --------------------------------------------------------------------------------------


def decode_row(config, ratio, *, batch=8, context=32768, group=4, share=0.8):
    return {
        "kind": "decode", "config": config, "batch": batch, "context": context, "group": group,
        "ratio": ratio, "ceiling_share": share,
    }  # fmt: skip


def verdicts(*rows):
    return {verdict.target.name: verdict.text for verdict in judge(rows)}


@pytest.mark.parametrize(("ratio", "text"), [(2.39, "missed"), (2.4, "met"), (3.1, "moonshot")])
def test_the_worst_row_decides(ratio, text):
    found = verdicts(decode_row("k4v4", ratio), decode_row("k4v4", 9.0, batch=64, context=4096))
    assert found["4-bit"] == text
    assert found["2-bit, rank 2"] == "not measured"
    assert found["share of the read ceiling"] == "met"


def test_small_shapes_are_bound_by_no_regression_only():
    found = verdicts(decode_row("k4v4", 0.8, batch=1, context=4096))
    assert found["one short sequence"] == "missed"
    assert found["4-bit"] == "not measured"


@pytest.mark.parametrize(("share", "text"), [(0.009, "met"), (0.02, "missed")])
def test_compression_has_an_upper_bound(share, text):
    row = {
        "kind": "compress", "config": "k4v4", "batch": 8, "context": 64, "group": 4,
        "decode_share": share,
    }  # fmt: skip
    assert verdicts(row)["compression's share of decoding"] == text
    assert verdicts({**row, "batch": 1})["compression's share of decoding"] == "not measured"


def test_a_peer_that_fails_is_no_baseline():
    place = {"batch": 1, "context": 64, "group": 4}
    failed = {
        **place,
        "kind": "peer",
        "peer": "flash-attn",
        "is_fp16": True,
        "failure": "ImportError",
    }
    fp8 = {
        **place,
        "kind": "peer",
        "peer": "flashinfer-fp8",
        "is_fp16": False,
        "us": 1.0,
        "bytes": 1,
    }
    row = {**place, "kind": "decode", "config": "k4v4", "us": 2.0, "bytes": 1, "nmse": 0.0}
    row = with_ratio(row, [failed, fp8])
    assert row["ratio"] is None
    assert row["ceiling_share"] is None
    assert "–" in summary([failed, fp8, row])


def test_timing_is_a_median_and_deciles():
    timing = Timing.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert timing.fields() == {"us": 3.0, "us_p10": 1.4, "us_p90": 4.6}
