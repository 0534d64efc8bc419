"""Targets are judged by the rows of a run, and the page shows recorded rows only."""

import pytest

from benchmarks import cpu_targets, report
from benchmarks.cpu_targets import LARGE, LONG, RANK, SHORT, Measured, judge
from gear_trt.bench.records import append_rows
from tests.bench.rows import model_row, operator_row


def measured(resident_ratio=1.0):
    """A run of which two places and two contexts were measured."""
    rows = []
    for candidate, speedup in ((f"gear {RANK}", 9.0), ("ort-fp32", 1.0), ("ort-int8", 2.0)):
        rows.append(
            operator_row(candidate=candidate, heads=str(LARGE), context=4096, speedup=speedup)
        )
    for context, speedup in ((SHORT, 0.9), (LONG, 1.6)):
        rows.append(model_row(context=context, speedup=speedup, context_speedup=4.0))
        rows.append(model_row(candidate="llama-q4_0", context=context, context_speedup=2.0))
    return Measured(rows, resident_ratio)


def verdict(start, records):
    (record,) = (record for record in records if str(record["what"]).startswith(start))
    return record["value"], record["is_met"]


def test_verdicts():
    records = judge(measured(resident_ratio=0.9))
    where = f"({LARGE}, 4096 tokens, 1 threads)"
    assert verdict(f"{RANK}: times faster than ort-fp32 {where}", records) == (9.0, True)
    assert verdict(f"{RANK}: times faster than ort-int8 {where}", records) == (4.5, False)
    assert verdict("model, 512 tokens: decode, times", records) == (0.9, False)
    assert verdict("model, 8192 tokens: decode, times", records) == (1.6, True)
    assert verdict("model, 8192 tokens: times less time", records) == (2.0, True)
    assert verdict("model, 512 tokens: part of decode", records) == (0.01, True)
    value, is_met = verdict("resident bytes", records)
    assert value == pytest.approx(0.1)
    assert not is_met


def test_what_was_not_measured_is_not_met():
    assert verdict("2-bit", judge(Measured([], 1.0))[:4]) == (None, False)


def test_every_target_has_its_place_in_the_plans():
    """No target speaks of an operator row that the run does not make."""
    rows = [
        operator_row(
            candidate=candidate,
            heads=str(point.heads),
            context=point.context,
            batch=point.batch,
            new_tokens=point.new_tokens,
            threads=point.threads,
        )
        for plan in cpu_targets.operator_plans()
        for point in plan.points
        for candidate in (
            *plan.peers,
            *(
                f"gear {named.name} {chosen}".rstrip()
                for named in plan.configs
                for chosen in plan.instruction_sets or ("",)
            ),
        )
    ]
    rows += [
        model_row(candidate=name, context=context)
        for name in ("gear k4v4", "ort-fp32", "llama-q4_0")
        for context in (SHORT, LONG)
    ]
    assert all(record["value"] is not None for record in judge(Measured(rows, 1.0)))


def test_page_shows_the_newest_run(tmp_path):
    path = tmp_path / "cpu.jsonl"
    run = measured()
    append_rows(path, [row.model_dump() for row in run.rows])
    append_rows(path, judge(run))
    text = report.numbers(report.newest_run(path))
    for part in ("### Targets", "9", "**missed**", "ort-int8", "### The whole model", "1.60"):
        assert part in text
    assert report.numbers(report.newest_run(tmp_path / "none.jsonl")) == report.NOTHING


def test_page_is_filled_between_its_markers():
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter"
    filled = report.filled(page, "new \\1")
    assert "old" not in filled
    assert "new \\1" in filled
    assert filled.startswith("before")
    assert filled.endswith("after")
    assert report.filled(filled, "new \\1") == filled
    with pytest.raises(ValueError, match="no lines"):
        report.filled("no markers", "new")


def test_page_is_not_stale(monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", "--check"])
    assert report.main() == 0
