"""Asymmetric uniform quantization of groups, with FP16 or two-level 8-bit metadata.

x̂ = code · scale + min (GEAR section 3, Quant_b). Mins round down and scales round up, so that
ranges never shrink: where they are the extremes, |x − x̂| ≤ scale/2 whatever the metadata's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gear_trt.reference.fit import fit_ranges
from gear_trt.reference.half import FloatArray, HalfArray, half_down, half_nearest, half_up
from gear_trt.spec.layout import SUPER_BLOCK

U8_MAX = np.float32(255.0)
I8_MAX = np.float32(127.0)


@dataclass(frozen=True)
class Quantized:
    """One side of a page, quantized. V vectors of L elements in `groups` groups.

    Attributes:
        codes_VL: [V, L] uint8.
        scales_GV: [groups, V] float32, as a kernel decodes them.
        mins_GV: [groups, V] float32, as a kernel decodes them.
        stored: The metadata fields as stored: `scales`, `mins`, and for 8-bit metadata
            `super_scales` and `super_mins`.
        dequantized_VL: [V, L] float32.
    """

    codes_VL: NDArray[np.uint8]
    scales_GV: FloatArray
    mins_GV: FloatArray
    stored: dict[str, NDArray[np.generic]]
    dequantized_VL: FloatArray


def quantize(
    x_VL: FloatArray,
    outliers_VO: NDArray[np.int64],
    *,
    bits: int,
    group_size: int,
    metadata_bits: int,
    is_fitted: bool = False,
) -> Quantized:
    """Quantize every vector by groups; outliers do not widen the range of their group.

    Args:
        x_VL: [V, L] float32.
        outliers_VO: [V, O] positions left out of the range; they get the nearest code.
        bits: Bits per code.
        group_size: Elements per group; the last group of a vector may be shorter.
        metadata_bits: 16 or 8.
        is_fitted: Fit ranges to the values of their group; otherwise its extremes are the range.
    """
    length = x_VL.shape[1]
    top_code = np.float32((1 << bits) - 1)
    is_outlier_VL = np.zeros(x_VL.shape, bool)
    np.put_along_axis(is_outlier_VL, outliers_VO, values=True, axis=1)

    starts = np.arange(0, length, group_size)
    for_low_VL = np.where(is_outlier_VL, np.float32(np.inf), x_VL)
    for_high_VL = np.where(is_outlier_VL, np.float32(-np.inf), x_VL)
    low_GV = np.minimum.reduceat(for_low_VL, starts, axis=1).T
    high_GV = np.maximum.reduceat(for_high_VL, starts, axis=1).T
    if is_fitted:
        low_GV, high_GV = fit_ranges(
            x_VL, is_outlier_VL, low_GV, high_GV, top_code=top_code, group_size=group_size
        )
    encode = _half_metadata if metadata_bits == 16 else _two_level_metadata
    scales_GV, mins_GV, stored = encode(low_GV, high_GV, top_code)

    group_of_L = np.arange(length) // group_size
    scale_VL, min_VL = scales_GV.T[:, group_of_L], mins_GV.T[:, group_of_L]
    inverse_VL = np.divide(np.float32(1), scale_VL, out=np.zeros_like(scale_VL), where=scale_VL > 0)
    codes_VL = np.rint(np.clip((x_VL - min_VL) * inverse_VL, 0, top_code)).astype(np.uint8)
    dequantized_VL = codes_VL.astype(np.float32) * scale_VL + min_VL
    return Quantized(codes_VL, scales_GV, mins_GV, stored, dequantized_VL)


def _half_metadata(
    low_GV: FloatArray, high_GV: FloatArray, top_code: np.float32
) -> tuple[FloatArray, FloatArray, dict[str, NDArray[np.generic]]]:
    constant_GV = low_GV == high_GV
    mins: HalfArray = np.where(constant_GV, half_nearest(low_GV), half_down(low_GV))
    mins_GV = mins.astype(np.float32)
    step_GV = np.where(constant_GV, np.float32(0), (high_GV - mins_GV) / top_code)
    scales = half_up(step_GV)
    return scales.astype(np.float32), mins_GV, {"scales": scales, "mins": mins}


def _two_level_metadata(
    low_GV: FloatArray, high_GV: FloatArray, top_code: np.float32
) -> tuple[FloatArray, FloatArray, dict[str, NDArray[np.generic]]]:
    constant_GV = low_GV == high_GV
    super_mins = half_up(_block_max(np.abs(low_GV)) / I8_MAX)
    unit_GV = _per_entry(super_mins, low_GV.shape)
    ratio_GV = _divide(low_GV, unit_GV)
    mins = np.clip(np.where(constant_GV, np.rint(ratio_GV), np.floor(ratio_GV)), -128, 127)
    mins_GV = mins.astype(np.float32) * unit_GV

    step_GV = np.where(constant_GV, np.float32(0), (high_GV - mins_GV) / top_code)
    super_scales = half_up(_block_max(step_GV) / U8_MAX)
    unit_GV = _per_entry(super_scales, low_GV.shape)
    scales = np.clip(np.ceil(_divide(step_GV, unit_GV)), 0, U8_MAX)
    stored: dict[str, NDArray[np.generic]] = {
        "scales": scales.astype(np.uint8),
        "mins": mins.astype(np.int8),
        "super_scales": super_scales,
        "super_mins": super_mins,
    }
    return scales.astype(np.float32) * unit_GV, mins_GV, stored


def _divide(x: FloatArray, unit: FloatArray) -> FloatArray:
    return np.divide(x, unit, out=np.zeros_like(x), where=unit > 0)


def _block_max(x_GV: FloatArray) -> FloatArray:
    """Maximum of every `SUPER_BLOCK` consecutive entries of the flattened [groups, V] array."""
    flat = x_GV.reshape(-1)
    return np.maximum.reduceat(flat, np.arange(0, flat.size, SUPER_BLOCK))


def _per_entry(per_block: HalfArray, shape: tuple[int, ...]) -> FloatArray:
    """Spread one value per block over the entries of its block."""
    size = int(np.prod(shape))
    return np.repeat(per_block.astype(np.float32), SUPER_BLOCK)[:size].reshape(shape)
