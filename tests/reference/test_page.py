import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gear_trt.reference import compress_page, decompress_page
from gear_trt.reference.half import half_down, half_up
from gear_trt.reference.outliers import find_outliers
from gear_trt.reference.pack import pack_array, pack_plane, unpack_array, unpack_plane
from gear_trt.reference.page import decode_side
from gear_trt.reference.quantize import quantize
from gear_trt.reference.rotate import rotate
from gear_trt.spec import PRESETS, CompressionConfig
from tests.reference.strategies import HEAD_DIMS, pages, rows

few = settings(max_examples=60)


@pytest.mark.parametrize(
    ("lanes", "quads", "bits"),
    [*itertools.product((64, 128), (64, 80, 96), (1, 2, 4, 8)), (80, 64, 1), (96, 128, 2)],
)
def test_pack_then_unpack_a_plane(lanes, quads, bits):
    codes = np.random.default_rng(0).integers(0, 1 << bits, (lanes, quads), dtype=np.uint8)
    words = pack_plane(codes, bits)
    assert words.size == lanes * quads * bits // 32
    np.testing.assert_array_equal(unpack_plane(words, lanes, quads, bits), codes)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 129])
def test_pack_then_unpack_nibbles(count):
    values = np.random.default_rng(0).integers(-7, 8, count).astype(np.int8)
    np.testing.assert_array_equal(unpack_array(pack_array(values, 4), (count,), "i1", 4), values)


@given(st.lists(st.floats(-1e5, 1e5, width=32), min_size=1))
def test_directed_rounding_to_half(values):
    x = np.array(values, np.float32)
    down, up = half_down(x).astype(np.float32), half_up(x).astype(np.float32)
    assert np.isfinite(down).all()
    assert np.isfinite(up).all()
    inside = np.abs(x) <= 65504
    assert (down[inside] <= x[inside]).all()
    assert (up[inside] >= x[inside]).all()
    exact = np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32) == x
    np.testing.assert_array_equal(down[exact & inside], x[exact & inside])


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotation_is_its_own_inverse_and_keeps_dot_products(head_dim):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 7, head_dim)).astype(np.float32)
    np.testing.assert_allclose(rotate(rotate(x)), x, atol=1e-6)
    np.testing.assert_allclose((rotate(x) * rotate(y)).sum(-1), (x * y).sum(-1), atol=1e-5)


def test_outliers_of_a_constant_vector_are_distinct_positions():
    positions = find_outliers(np.ones((3, 64), np.float32), 4)
    assert all(len(set(row)) == 4 for row in positions)


def test_outliers_are_the_extremes_first_of_equals():
    x = np.array([[0, 9, -9, 9, 5, -9, -5, 1]], np.float32)
    np.testing.assert_array_equal(find_outliers(x, 2), [[1, 2]])
    np.testing.assert_array_equal(find_outliers(x, 4), [[1, 3, 2, 5]])


@few
@given(pages(), st.sampled_from(("key", "value")))
def test_error_is_at_most_half_a_step_off_outliers(page, side):
    config, keys, values = page
    x = rotate((keys if side == "key" else values).astype(np.float32))
    x_VL = np.ascontiguousarray(x.T if side == "key" else x)
    outliers = find_outliers(x_VL, config.outliers)
    result = quantize(
        x_VL,
        outliers,
        bits=config.key_bits,
        group_size=config.group_size,
        metadata_bits=config.metadata_bits,
    )
    group = np.arange(x_VL.shape[1]) // config.group_size
    scale_VL, min_VL = result.scales_GV.T[:, group], result.mins_GV.T[:, group]
    error = np.abs(x_VL - result.dequantized_VL)
    np.put_along_axis(error, outliers, 0, axis=1)
    # A constant group stores scale 0 and the nearest min; its error is the min's rounding.
    constant = scale_VL == 0
    saturated = np.abs(x_VL) > 60000
    rounding = 4e-7 * (np.abs(x_VL) + np.abs(min_VL))
    within = error <= scale_VL * 0.5001 + rounding
    assert (within | constant | saturated).all()


def test_a_constant_vector_has_scale_and_code_zero():
    for metadata_bits in (8, 16):
        result = quantize(
            np.full((4, 64), 0.3, np.float32),
            np.zeros((4, 0), np.int64),
            bits=4,
            group_size=32,
            metadata_bits=metadata_bits,
        )
        assert not result.codes_VL.any()
        assert not result.scales_GV.any()
        np.testing.assert_allclose(result.dequantized_VL, 0.3, rtol=1e-2)


def _square_error(x, words, side, config):
    exact = x.astype(np.float32)
    if getattr(config, f"rotate_{side}s"):
        exact = rotate(exact)
    return float(
        ((decode_side(words, side, config, x.shape[1]) - exact) ** 2).sum(dtype=np.float64)
    )


@few
@given(pages())
def test_rank_never_raises_the_error(page):
    config, keys, values = page
    plain = config.model_copy(update={"rank": 0})
    corrected = config.model_copy(update={"rank": max(config.rank, 1)})
    for side, x in (("key", keys), ("value", values)):
        before = _square_error(x, compress_page(keys, values, plain), side, plain)
        after = _square_error(x, compress_page(keys, values, corrected), side, corrected)
        assert after <= before * 1.0001 + 1e-9


@few
@given(pages())
def test_outlier_slots_are_exact_to_half_precision(page):
    config, keys, values = page
    if not config.outliers:
        config = config.model_copy(update={"outliers": 2})
    words = compress_page(keys, values, config)
    for side, x in (("key", keys), ("value", values)):
        exact = x.astype(np.float32)
        if getattr(config, f"rotate_{side}s"):
            exact = rotate(exact)
        decoded = decode_side(words, side, config, x.shape[1])
        if side == "key":
            exact, decoded = exact.T, decoded.T
        slots = find_outliers(np.ascontiguousarray(exact), config.outliers)
        exact, decoded = (np.take_along_axis(array, slots, axis=1) for array in (exact, decoded))
        # δ is rounded once; it is no larger than the value and the range of its vector together.
        magnitude = np.abs(exact).max() * 4
        tolerance = magnitude * 2.0**-11 + 2.0**-24
        assert (np.abs(decoded - exact) <= tolerance).all() or magnitude > 60000


@few
@given(pages())
def test_pages_are_finite_and_deterministic(page):
    config, keys, values = page
    words = compress_page(keys, values, config)
    np.testing.assert_array_equal(words, compress_page(keys.copy(), values.copy(), config))
    for x in decompress_page(words, config, keys.shape[1]):
        assert np.isfinite(x).all()


@given(rows(64, 64), rows(64, 64))
@settings(max_examples=20)
def test_pass_through_pages_are_exact(keys, values):
    for name in ("fp16", "exact"):
        config = CompressionConfig.preset(name)
        decoded = decompress_page(compress_page(keys, values, config), config, 64)
        np.testing.assert_array_equal(decoded[0], keys.astype(np.float32))
        np.testing.assert_array_equal(decoded[1], values.astype(np.float32))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in ("exact", "fp16")])
def test_more_bits_mean_less_error(preset):
    rng = np.random.default_rng(0)
    chunk = CompressionConfig.preset(preset).chunk
    keys, values = rng.normal(size=(2, chunk, 64)).astype(np.float16)
    errors = []
    for bits in (2, 3, 4, 8):
        config = CompressionConfig.preset(preset, key_bits=bits, value_bits=bits)
        words = compress_page(keys, values, config)
        errors.append(_square_error(keys, words, "key", config))
    assert errors == sorted(errors, reverse=True)


def test_non_finite_values_are_refused():
    keys = np.zeros((64, 64), np.float16)
    keys[3, 5] = np.nan
    with pytest.raises(ValueError, match="finite"):
        compress_page(keys, np.zeros_like(keys), CompressionConfig())


def _decoded(x_VL, bits, *, is_fitted, outliers=0):
    result = quantize(
        x_VL,
        find_outliers(x_VL, outliers),
        bits=bits,
        group_size=32,
        metadata_bits=16,
        is_fitted=is_fitted,
    )
    return result.dequantized_VL


@pytest.mark.parametrize(("bits", "part"), [(2, 0.75), (3, 0.88), (4, 0.9)])
def test_fitted_ranges_lower_the_error_and_keep_the_slope(bits, part):
    x_VL = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    errors = []
    for is_fitted in (False, True):
        decoded = _decoded(x_VL, bits, is_fitted=is_fitted)
        errors.append(((decoded - x_VL) ** 2).mean())
        assert (decoded * x_VL).mean() / (x_VL**2).mean() == pytest.approx(1, abs=0.025)
    assert errors[1] < part * errors[0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_outliers_do_not_take_part_in_a_fit(bits):
    x_VL = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    x_VL[:, 7], x_VL[:, 40] = 900, -900
    quiet = x_VL.copy()
    quiet[:, 7], quiet[:, 40] = 60, -60
    loud, calm = (_decoded(x, bits, is_fitted=True, outliers=2) for x in (x_VL, quiet))
    np.testing.assert_array_equal(np.delete(loud, (7, 40), 1), np.delete(calm, (7, 40), 1))
