import numpy as np
import pytest

from gear_trt import native
from gear_trt.spec import CompressionConfig
from tests.cases import COMPRESSION_CASES, pages
from tests.plugins.checks import check_compression


def compress_pages(keys_PCD, values_PCD, config, *, out):
    for keys_CD, values_CD, words in zip(keys_PCD, values_PCD, out, strict=True):
        native.compress_page(keys_CD, values_CD, config, out=words)


@pytest.mark.parametrize("case", COMPRESSION_CASES, ids=str)
def test_pages_equal_the_reference(case, instruction_set):
    check_compression(compress_pages, case)


def test_the_table_has_a_thousand_pages():
    assert sum(len(pages(case)) for case in COMPRESSION_CASES) >= 1000


def test_factors_are_deterministic(instruction_set):
    config = CompressionConfig(rank=8, outliers=4)
    keys, values = np.random.default_rng(0).normal(size=(2, 64, 80)).astype(np.float16)
    first = native.compress_page(keys, values, config)
    native.compress_page(values, keys, config)
    np.testing.assert_array_equal(first, native.compress_page(keys, values, config))


@pytest.mark.parametrize("side", ["key", "value"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(side, value, instruction_set):
    keys, values = np.zeros((2, 64, 64), np.float16)
    (keys if side == "key" else values)[5, 63] = value
    with pytest.raises(ValueError, match=f"{side} of token 5 is not finite"):
        native.compress_page(keys, values, CompressionConfig())


def test_a_config_that_no_kernel_has_is_refused():
    config = CompressionConfig.model_construct(**{**CompressionConfig().model_dump(), "rank": 9})
    rows = np.zeros((64, 64), np.float16)
    with pytest.raises(ValueError, match=r"rank is 9, must be in 0\.\.8"):
        native.compress_page(rows, rows, config)


def test_shapes_are_checked():
    rows = np.zeros((32, 64), np.float16)
    with pytest.raises(ValueError, match=r"keys_CD has shape \(32, 64\), must be \(64, 64\)"):
        native.compress_page(rows, rows, CompressionConfig())
