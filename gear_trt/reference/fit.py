"""Ranges that follow the values of their group instead of its two extremes.

With codes c and values u in steps of the range, u = c + r. The range of least squared error has
steps longer by the factor cov(c, u) / var(c), and from it come other codes: two passes. Such an x̂
is smaller than x on average, an error that sums over many tokens add up; so the last pass takes
the factor var(u) / cov(c, u), with which x̂ follows x with slope one (docs/adr/0018).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gear_trt.reference.half import FloatArray

FIT_PASSES = 3
FIT_UNITS = 256
"""Parts of a step in which r is counted: sums of integers are exact in any order."""


def fit_ranges(
    x_VL: FloatArray,
    is_outlier_VL: NDArray[np.bool_],
    low_GV: FloatArray,
    high_GV: FloatArray,
    *,
    top_code: np.float32,
    group_size: int,
) -> tuple[FloatArray, FloatArray]:
    """Fit the range of every group to its values.

    Args:
        x_VL: [V, L] float32.
        is_outlier_VL: [V, L] values that are left out.
        low_GV: [groups, V] smallest value of each group.
        high_GV: [groups, V] largest value.
        top_code: Largest code.
        group_size: Elements per group; the last group of a vector may be shorter.

    Returns:
        Lows and highs [groups, V]; those of a constant group as they were.
    """
    group_of_L = np.arange(x_VL.shape[1]) // group_size
    starts = np.arange(0, x_VL.shape[1], group_size)

    def sums_GV(integers_VL: NDArray[np.int64]) -> NDArray[np.int64]:
        left = np.where(is_outlier_VL, 0, integers_VL)
        return np.asarray(np.add.reduceat(left, starts, axis=1).T)

    def scaled(integers_GV: NDArray[np.int64], units: int) -> FloatArray:
        return np.asarray(integers_GV.astype(np.float32) / np.float32(units))

    n = sums_GV(np.ones(x_VL.shape, np.int64))
    for fit_pass in range(FIT_PASSES):
        step_GV = np.asarray((high_GV - low_GV) / top_code, np.float32)
        u_VL = (x_VL - low_GV.T[:, group_of_L]) * _divide(1, step_GV).T[:, group_of_L]
        c_VL = np.rint(np.clip(u_VL, 0, top_code))
        most = np.float32(FIT_UNITS - 1)
        r_VL = np.rint(np.clip((u_VL - c_VL) * np.float32(FIT_UNITS), -most, most))
        c_VL, r_VL = c_VL.astype(np.int64), r_VL.astype(np.int64)

        c, r = sums_GV(c_VL), sums_GV(r_VL)
        spread = scaled(n * sums_GV(c_VL * c_VL) - c * c, 1)
        lift = scaled(n * sums_GV(c_VL * r_VL) - c * r, FIT_UNITS)
        noise = scaled(n * sums_GV(r_VL * r_VL) - r * r, FIT_UNITS**2)
        is_last = fit_pass == FIT_PASSES - 1
        gain = _divide(lift + noise, spread + lift) if is_last else _divide(lift, spread)
        shift = (scaled(r, FIT_UNITS) - gain * scaled(c, 1)) / scaled(n, 1)
        low_GV = np.asarray(low_GV + step_GV * shift, np.float32)
        high_GV = np.asarray(low_GV + step_GV * (1 + gain) * top_code, np.float32)
    return low_GV, high_GV


def _divide(x: FloatArray | int, by: FloatArray) -> FloatArray:
    """Divide, with 0 where the divisor is not positive."""
    return np.divide(np.float32(x), by, out=np.zeros_like(by), where=by > 0)
