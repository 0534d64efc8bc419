"""Rows on disk, and new ones beside old ones."""

import json

import pytest

from gear_trt.bench.records import append_rows, compare, read_rows
from gear_trt.errors import ErrorCode, GearError
from tests.bench.rows import model_row, operator_row


def test_rows_come_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [operator_row(), model_row()]
    append_rows(path, [rows[0].model_dump()])
    append_rows(path, [rows[1].model_dump()])
    assert read_rows(path) == rows
    recorded = json.loads(path.read_text().splitlines()[0])
    assert recorded["benchmark"] == "ops"
    assert recorded["versions"]["numpy"]
    assert recorded["time"]


def test_rows_of_other_benchmarks_are_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"benchmark": "quality", "kl": 0.1}, operator_row().model_dump()])
    assert read_rows(path) == [operator_row()]


@pytest.mark.parametrize("line", ["{", "[1]", '{"benchmark": "ops"}', "1"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [operator_row().model_dump()])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(GearError, match="line 2") as caught:
        read_rows(path)
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_comparison_takes_the_newest_row_of_the_same_place():
    old = [
        operator_row(seconds=9.0),
        operator_row(seconds=0.004),
        operator_row(context=2048, seconds=7.0),
        model_row(),
    ]
    (found,) = compare([operator_row(seconds=0.001), operator_row(threads=2)], old)
    assert (found.old_seconds, found.speedup) == (0.004, 4.0)
    (found,) = compare([model_row(seconds=0.1)], old)
    assert found.speedup == 0.5
