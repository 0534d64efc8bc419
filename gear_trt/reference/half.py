"""Rounding FP32 to FP16 in a chosen direction, without ever reaching infinity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
HalfArray = NDArray[np.float16]
FloatingArray = NDArray[np.floating[Any]]
"""float32, float16, or `ml_dtypes.bfloat16`, which numpy's types do not know."""

HALF_MAX = np.float32(65504.0)


def half_nearest(x: FloatArray) -> HalfArray:
    """Round to the nearest FP16, ties to even; saturate at ±65504."""
    return np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16)


def half_down(x: FloatArray) -> HalfArray:
    """Round to the largest FP16 that is not above x; saturate at ±65504."""
    rounded = half_nearest(x)
    too_large = rounded.astype(np.float32) > x
    lower = np.nextafter(rounded, np.float16(-HALF_MAX))
    return np.where(too_large, lower, rounded).astype(np.float16)


def half_up(x: FloatArray) -> HalfArray:
    """Round to the smallest FP16 that is not below x; saturate at ±65504."""
    return -half_down(-x)
