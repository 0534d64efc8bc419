import numpy as np
import pytest

from gear_trt import native
from gear_trt.spec import CompressionConfig
from tests.cases import COMPRESSION_CASES, pages
from tests.plugins.checks import check_compression


@pytest.mark.parametrize("case", COMPRESSION_CASES, ids=str)
def test_pages_equal_the_reference(case, emulated):
    check_compression(emulated.compress_pages, case)


DEMANDING = CompressionConfig(
    key_bits=3, value_bits=2, rank=8, outliers=4, chunk=128, rotate_keys=1, rotate_values=1
)
EXACTLY_EQUAL = [
    CompressionConfig(),
    CompressionConfig.preset("exact"),
    CompressionConfig(key_bits=3, value_bits=2, outliers=4, chunk=128),
    CompressionConfig(key_bits=16, value_bits=4, rotate_keys=0),
]


def rows(config, head_dim, count=3):
    rng = np.random.default_rng(0)
    shape = (count, config.chunk, head_dim)
    return (rng.normal(size=shape).astype(config.buffer_dtype) for _ in range(2))


@pytest.mark.parametrize("config", EXACTLY_EQUAL, ids=range(len(EXACTLY_EQUAL)))
@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_a_page_without_fitted_factors_has_the_bytes_of_the_cpu(config, head_dim, emulated):
    keys, values = rows(config, head_dim)
    expected = [native.compress_page(*sides, config) for sides in zip(keys, values, strict=True)]
    np.testing.assert_array_equal(emulated.compress_pages(keys, values, config), expected)


def test_the_order_of_threads_changes_nothing(emulated, monkeypatch):
    keys, values = rows(DEMANDING, 80)
    monkeypatch.setenv("GEAR_EMULATOR_ORDER", "forward")
    forward = emulated.compress_pages(keys, values, DEMANDING)
    monkeypatch.setenv("GEAR_EMULATOR_ORDER", "reverse")
    np.testing.assert_array_equal(forward, emulated.compress_pages(keys, values, DEMANDING))


@pytest.mark.parametrize("side", ["key", "value"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_page_with_values_that_are_not_finite_is_left_alone(side, value, emulated):
    config = CompressionConfig()
    keys, values = rows(config, 64)
    (keys if side == "key" else values)[1, 5, 63] = value
    out = np.full((3, len(native.compress_page(keys[0], values[0], config))), -1, np.int32)
    with pytest.raises(ValueError, match=f"page 1: {side} of token 5 is not finite"):
        emulated.compress_pages(keys, values, config, out=out)
    for page in (0, 2):
        expected = native.compress_page(keys[page], values[page], config)
        np.testing.assert_array_equal(out[page], expected)
    assert (out[1] == -1).any()


def test_a_fault_is_reported_once(emulated):
    config = CompressionConfig()
    keys, values = rows(config, 64)
    broken = keys.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        emulated.compress_pages(broken, values, config)
    emulated.compress_pages(keys, values, config)


def test_a_config_that_no_kernel_has_is_refused(emulated):
    config = CompressionConfig.model_construct(**{**CompressionConfig().model_dump(), "rank": 9})
    keys, values = rows(CompressionConfig(), 64)
    with pytest.raises(ValueError, match=r"rank is 9, must be in 0\.\.8"):
        emulated.compress_pages(keys, values, config, out=np.zeros((3, 10000), np.int32))


def test_the_table_has_a_tile_that_fits_no_shared_memory_of_small_gpus():
    case = next(case for case in COMPRESSION_CASES if case.name == "chunk-128-dim-256")
    assert pages(case)[0].keys_CD.size * 4 > 99 * 1024
