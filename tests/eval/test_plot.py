"""Pictures of rows: which there are, what they name, and that the same rows give the same file."""

import pytest

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval import plot
from gear_trt.eval.layers import LayerRow
from tests.benchmarks.test_quality import row


def rows():
    return [
        row("k4v4", 0.002, 4.56),
        row("k4v4, keys unscaled", 0.0019, 4.56),
        row("near-lossless", 0.0018, 4.53, buffer=128),
        row("kivi-k4v4-g64", 0.007, 4.5, "kivi"),
        row("fp16", 0.0, 16),
    ]


def layers():
    return [
        LayerRow(
            model="m", text="t", candidate="k4v4", layer=layer, key_error=0.01, value_error=0.02,
            output_error=0.003,
        )
        for layer in range(3)
    ]  # fmt: skip


def test_pictures_name_every_lossy_cache_and_larger_buffers(tmp_path):
    files = plot.draw(rows(), layers(), tmp_path)
    assert [file.name for file in files] == ["kl_bytes.svg", "perplexity_bytes.svg", "layers.svg"]
    text = files[0].read_text()
    for name in (
        "k4v4",
        "gear (ours), keys unscaled",
        "near-lossless (buffer 128)",
        "kivi-k4v4-g64",
    ):
        assert f"<!-- {name} -->" in text
    assert "<!-- fp16 -->" not in text, "lossless caches have no place on a logarithmic axis"


def test_the_same_rows_give_the_same_file(tmp_path):
    first, second = (plot.draw(rows(), [], tmp_path / name)[0].read_bytes() for name in "ab")
    assert first == second


def test_nothing_to_draw(tmp_path):
    with pytest.raises(GearError) as caught:
        plot.draw([row("fp16", 0.0, 16)], [], tmp_path)
    assert caught.value.code is ErrorCode.BAD_REQUEST
