"""What a user writes, and what is made of it."""

import pytest

from gear_trt.bench.grid import (
    Heads,
    Point,
    config_name,
    grid,
    parse_config,
    parse_counts,
    parse_heads,
    parse_names,
)
from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import PRESETS, CompressionConfig


def refused(code, read, *arguments, **options):
    with pytest.raises(GearError) as caught:
        read(*arguments, **options)
    assert caught.value.code is code
    return caught.value


def test_heads():
    assert parse_heads("32/8x128") == Heads(32, 8, 128)
    assert str(parse_heads("9/3x64")) == "9/3x64"


@pytest.mark.parametrize(
    "text",
    [
        *("", "32", "32/8", "32x128", "32/8x", "a/bxc", " 4/2x64", "-4/2x64"),
        *("9/2x64", "0/1x64", "4/0x64", "4/2x65", "4/2x0", "4/2x512"),
    ],
)
def test_heads_that_are_none(text):
    error = refused(ErrorCode.BAD_REQUEST, parse_heads, text)
    assert f"'{text}'" in error.message


def test_counts():
    assert parse_counts("512,4k,16K", "--context") == (512, 4096, 16384)
    assert parse_counts("1, 2 ,1", "--batch") == (1, 2)
    assert parse_counts("0", "--context", minimum=0) == (0,)


@pytest.mark.parametrize("text", ["", "1,,2", "4m", "-1", "1.5", "k", "0"])
def test_counts_that_are_none(text):
    assert "--context" in refused(ErrorCode.BAD_REQUEST, parse_counts, text, "--context").message


def test_names():
    assert parse_names("b,a", "peer", ("a", "b")) == ("b", "a")
    assert "a, b" in refused(ErrorCode.BAD_REQUEST, parse_names, "c", "peer", ("a", "b")).hint


def test_config():
    named = parse_config("k4v4+rank=2,outliers=2")
    assert named.name == "k4v4+rank=2,outliers=2"
    assert named.config == CompressionConfig.preset("k4v4", rank=2, outliers=2)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("k5v5", ErrorCode.UNKNOWN_PRESET),
        ("", ErrorCode.UNKNOWN_PRESET),
        ("k4v4+", ErrorCode.BAD_REQUEST),
        ("k4v4+rank", ErrorCode.BAD_REQUEST),
        ("k4v4+rank=two", ErrorCode.BAD_REQUEST),
        ("k4v4+rank=2,", ErrorCode.BAD_REQUEST),
        ("k4v4+rank=99", ErrorCode.BAD_CONFIG),
        ("k4v4+no_such_field=1", ErrorCode.BAD_CONFIG),
    ],
)
def test_config_that_is_none(text, code):
    refused(code, parse_config, text)


@pytest.mark.parametrize("text", [*PRESETS, "k4v4+rank=2", "k2v2+rank=2,outliers=2"])
def test_name_of_a_config(text):
    assert config_name(parse_config(text).config) == text


def test_grid_is_every_combination():
    points = grid([Heads(4, 2, 32)], [8, 16], [1, 2], [1], [1])
    assert [(point.context, point.batch) for point in points] == [(8, 1), (8, 2), (16, 1), (16, 2)]


def test_point_in_words():
    assert str(Point(Heads(4, 2, 32), 8, 1, 1, 1)) == (
        "heads 4/2x32, context 8, batch 1, decode, 1 thread"
    )
    assert "prefill of 40, 2 threads" in str(Point(Heads(4, 2, 32), 8, 1, 40, 2))
