"""Runs of the operator benchmark on a grid that takes seconds."""

import math

import pytest

from gear_trt import native
from gear_trt.bench import operator
from gear_trt.bench.grid import Heads, Point, parse_config
from gear_trt.bench.group_query import PEERS
from gear_trt.bench.operator import OperatorPlan, run
from gear_trt.errors import ErrorCode, GearError

HEADS = Heads(4, 2, 32)
DECODE = Point(HEADS, 150, 1, 1, 1)


def plan(*points, **options):
    configs = [parse_config(name) for name in options.pop("configs", ("k4v4", "exact"))]
    return OperatorPlan(points, configs, **{"rounds": 2, **options})


def refused(asked):
    with pytest.raises(GearError) as caught:
        list(run(asked))
    assert caught.value.code is ErrorCode.BAD_REQUEST
    return caught.value


def test_decode_gives_a_row_per_candidate():
    (result,) = run(plan(DECODE))
    rows = {row.candidate: row for row in result.rows}
    assert list(rows) == ["gear k4v4", "gear exact", *PEERS]
    assert not result.refusals
    for row in rows.values():
        assert row.heads == "4/2x32"
        assert (row.context, row.batch, row.new_tokens, row.threads) == (150, 1, 1, 1)
        assert 0 < row.seconds_min <= row.seconds
        assert row.rounds == 2
        assert row.copies >= 1
        assert row.bytes_per_second == pytest.approx(row.read_bytes / row.seconds)
        assert row.cache_state in {"memory", "L3", "L2", "unknown"}
        assert row.stream_bytes_per_second > 0
    assert rows["ort-fp32"].speedup == 1
    assert rows["gear k4v4"].speedup == pytest.approx(
        rows["ort-fp32"].seconds / rows["gear k4v4"].seconds, rel=0.9
    )
    assert rows["gear exact"].nmse < 1e-10 < rows["gear k4v4"].nmse < 0.1
    assert 0 <= rows["gear k4v4"].compression_share < 1
    assert rows["ort-fp32"].compression_share is None
    assert rows["ort-int4"].bytes_per_token == 2 * 2 * 32 / 2


def test_the_faster_form_of_a_peer_stands_for_it():
    (result,) = run(plan(DECODE, peers=("ort-fp32", "ort-int8")))
    row = next(row for row in result.rows if row.candidate == "ort-int8")
    ((other, seconds),) = row.slower_forms.items()
    assert {row.cache, other} == {"int8 per_tensor", "int8 per_channel"}
    assert seconds >= row.seconds


def test_prefill():
    (result,) = run(plan(Point(HEADS, 0, 1, 70, 2)))
    assert {row.new_tokens for row in result.rows} == {70}
    assert all(math.isfinite(row.nmse) for row in result.rows)
    assert all(row.compression_share is None for row in result.rows)


def test_a_peer_that_cannot_run_says_why():
    """ONNX Runtime has no prefill of several sequences that have a past."""
    (result,) = run(plan(Point(HEADS, 150, 2, 40, 1)))
    assert [row.candidate for row in result.rows] == ["gear k4v4", "gear exact"]
    assert "batch_size must be 1" in result.refusals["ort-fp32"]
    assert all(row.speedup is None and row.baseline is None for row in result.rows)


def test_instruction_sets_and_hosts_run_side_by_side():
    chosen = native.instruction_set()
    sets = native.build_info()["instruction_sets"][:2]
    asked = plan(
        DECODE, configs=("k4v4",), peers=(), instruction_sets=sets, c_abi=True,
        baseline="gear k4v4 scalar",
    )  # fmt: skip
    (result,) = run(asked)
    assert [(row.candidate, row.instruction_set, row.host) for row in result.rows] == [
        (f"gear k4v4 {name}{suffix}", name, host)
        for name in sets
        for suffix, host in (("", "onnxruntime"), (" (C ABI)", "c-abi"))
    ]
    assert native.instruction_set() == chosen


def test_copies_make_a_round_larger_than_the_caches(monkeypatch):
    monkeypatch.setattr(operator, "cache_bytes", lambda level: 1 << 18)
    monkeypatch.setattr(operator, "MAXIMUM_ROUND_BYTES", 1 << 22)
    (result,) = run(plan(DECODE))
    assert {row.cache_state for row in result.rows} == {"memory"}
    assert {row.candidate: row.copies for row in result.rows}["gear k4v4"] > 1
    assert all(row.round_bytes > 1 << 18 for row in result.rows)


def test_progress_ends_near_one():
    told = []
    list(run(plan(DECODE, Point(HEADS, 70, 1, 1, 1)), lambda *what: told.append(what)))
    done = [part for _, _, part in told]
    assert done == sorted(done)
    assert done[-1] == 1
    assert {stage for stage, _, _ in told} >= {str(DECODE)}


def test_wrong_requests():
    assert "gear k4v4" in refused(plan(DECODE, baseline="ort-fp64")).hint
    assert "avx1024" in refused(plan(DECODE, instruction_sets=("avx1024",))).message
    assert "--new" in refused(plan(Point(HEADS, 0, 1, 1, 1))).hint


def test_too_little_memory(monkeypatch):
    monkeypatch.setattr(operator, "available_memory_bytes", lambda: 1000)
    assert "GB of memory" in refused(plan(DECODE)).message
