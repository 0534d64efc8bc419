"""The quality page shows recorded rows only, and its verdicts are theirs."""

import math

import pytest

from benchmarks import quality_candidates, quality_report
from benchmarks.quality_candidates import BASES, FRONTIER, PARTS, part_configs, variant
from gear_trt.bench.grid import parse_config
from gear_trt.eval.records import EvalRow
from gear_trt.spec import CompressionConfig


def row(candidate, kl, bits, kind="gear", config=None, buffer=64):
    return EvalRow(
        model="m", text="t", candidate=candidate, kind=kind, cache="", is_simulated=False,
        config=config, layer_configs={}, sequences=1, context=256, slice=12, tokens=192,
        bits_per_element=bits, bytes_per_token=bits * 10, fp16_bytes_per_token=160,
        buffer=buffer, cache_bytes_per_token=None, kl=kl, kl_error=kl / 10, top1=0.9,
        top1_error=0.01, exact_perplexity=10, perplexity_ratio=1 + kl, perplexity_ratio_error=0.01,
    )  # fmt: skip


def test_the_page_is_what_its_rows_say():
    assert quality_report.PAGE.read_text() == quality_report.page(), (
        "docs/quality.md is stale: run `python -m benchmarks.quality_report`"
    )


def test_a_frontier_line_names_the_best_peer_that_is_no_larger():
    rows = [
        row("k4v4", 0.002, 4.56),
        row("a", 0.004, 4.5, "kivi"),
        row("b", 0.003, 4.56, "llama.cpp"),
        row("c", 0.001, 4.6, "kivi"),
        row("d", 0.001, 4.4, "kivi", buffer=128),
    ]
    lines = list(quality_report._frontier(rows))
    assert [line.split("|")[1].strip(" *") for line in lines[2:-1]] == ["c", "k4v4", "b", "a", "d"]
    assert "b: 0.00300 at 4.56" in lines[3], "larger ones and other buffers do not count"


def test_unscaled_rows_are_ours_and_current():
    config = CompressionConfig.preset("k3v2").model_dump()
    unscaled = row("k3v2, keys unscaled", 0.02, 3.06, config=config)
    assert quality_report._is_current(unscaled)
    assert not quality_report._is_current(unscaled.model_copy(update={"candidate": "k4v4"}))
    lines = list(quality_report._quality([unscaled, row("k3v2", 0.01, 3.06, config=config)]))
    assert [line for line in lines if "**k3v2, keys unscaled**" in line]
    assert not [line for line in lines if "codes + low rank" in line], "no row of parts"


def test_targets():
    large, pages_of_64 = ({"key_bits": 4, "chunk": chunk} for chunk in (128, 64))
    rows = [
        row("near-lossless", 0.001, 4.5, config=large),
        row("k4v4", 0.002, 4.56, config=pages_of_64),
        row("k4v4, keys unscaled", 0.003, 4.56, config=pages_of_64),
        row("small, keys unscaled", 0.015, 3.04),
        row("small", 0.011, 3.06),
        row("a", 0.09, 3.0, "kivi"),
    ]
    lines = "\n".join(quality_report._targets(rows))
    assert (
        "| near-lossless | KL ≤ 0.0015 at ≤ 4.55 bits | KL 0.00100 at 4.50 | met "
        "| a: 0.09000 at 3.00 | not measured | KL 0.002" in lines
    )
    assert "KL 0.01100 at 3.06 | **missed** | a: 0.09000 at 3.00 | KL 0.01500 at 3.04" in lines
    assert "| tiny | KL ≤ 0.055 at ≤ 2.8 bits | not measured | **missed** | – | not m" in lines
    assert list(quality_report._targets([row("k4v4", 0.1, 4)])) == []


def test_codes_of_the_same_bits_lie_on_a_line_in_the_logarithm():
    points = [(2.0, 1.0), (4.0, 0.01), (6.0, 0.0001)]
    assert quality_report.interpolated(points, 2.0) == 1.0
    assert quality_report.interpolated(points, 3.0) == pytest.approx(0.1)
    assert math.isclose(quality_report.interpolated(points, 5.0), 0.001)
    assert quality_report.interpolated(points, 6.1) is None


def test_parts_are_compared_with_codes_of_the_same_bits():
    base = next(iter(BASES))
    rows = [
        row("2", 0.4, 2.5, config=variant(base, 2, 2).model_dump()),
        row("4", 0.004, 4.5, config=variant(base, 4, 4).model_dump()),
    ]
    for part, kl, bits in zip(PARTS, (0.4, 0.2, 0.1, 0.02), (2.5, 3.5, 3.0, 4.5), strict=True):
        rows.append(row(part, kl, bits, config=variant(base, 2, 2, part).model_dump()))
    lines = "\n".join(quality_report._parts(rows))
    assert "| 2/2 | codes + low rank | 3.50 | 0.20000 ± 0.02000 | 0.04000 | 5.00 |" in lines
    assert "| 2/2 | all three | 4.50 | 0.02000 ± 0.00200 | 0.00400 | 5.00 |" in lines
    assert "The parts beat codes alone of the same bits in 1 of 3 cases." in lines


def test_every_part_and_width_is_measured_once():
    names = [*FRONTIER, *part_configs()]
    assert len(set(names)) == len(names)
    measured = [parse_config(name).config for name in names]
    measured += [quality_candidates.kivi_config(*s) for s in quality_candidates.KIVI.values()]
    assert len(set(measured)) == len(measured)
    for base in BASES:
        for part in PARTS:
            assert variant(base, 3, 3, part) in measured
    assert CompressionConfig.preset("paper-2bit") in measured
