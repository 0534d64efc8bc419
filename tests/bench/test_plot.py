"""Pictures are written, labelled, and the same for the same rows."""

import pytest

from gear_trt.bench.plot import draw
from gear_trt.errors import ErrorCode, GearError
from tests.bench.rows import model_row, operator_row

CANDIDATES = {"gear k4v4": ("gear", 1.0), "ort-fp32": ("onnxruntime", 8.0)}


def operator_rows(axis, places):
    return [
        operator_row(candidate=name, engine=engine, seconds=factor * place * 1e-6, **{axis: place})
        for name, (engine, factor) in CANDIDATES.items()
        for place in places
    ]


def test_every_picture(tmp_path):
    rows = [
        *operator_rows("context", (1024, 4096)),
        *operator_rows("batch", (1, 4)),
        *(model_row(context=context) for context in (512, 8192)),
    ]
    files = draw(rows, tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        "time_context.svg", "time_batch.svg", "error_bytes.svg", "tokens_context.svg",
    ]  # fmt: skip
    before = [file.read_bytes() for file in files]
    assert all(content.startswith(b"<?xml") for content in before)
    draw(rows, tmp_path / "new" / "folder")
    assert [file.read_bytes() for file in files] == before


def test_only_what_the_rows_suffice_for(tmp_path):
    files = draw([model_row(context=512), model_row(context=1024)], tmp_path)
    assert [file.name for file in files] == ["tokens_context.svg"]


def test_later_rows_replace_earlier_ones(tmp_path):
    rows = operator_rows("context", (1024, 4096))
    (want, *_) = (file.read_bytes() for file in draw(rows, tmp_path))
    stale = [row.model_copy(update={"seconds": 99.0}) for row in rows]
    (got, *_) = (file.read_bytes() for file in draw([*stale, *rows], tmp_path))
    assert got == want


def test_nothing_to_draw(tmp_path):
    with pytest.raises(GearError, match="nothing to draw") as caught:
        draw([], tmp_path / "new")
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert not (tmp_path / "new").exists()
