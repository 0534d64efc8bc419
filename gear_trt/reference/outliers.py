"""The sparse part: the same number of outliers in every vector (GEAR section 3, Filter_s)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gear_trt.reference.half import FloatArray


def find_outliers(x_VL: FloatArray, count: int) -> NDArray[np.int64]:
    """Find the count/2 largest, then the count/2 smallest elements of each vector.

    Args:
        x_VL: [V, L] float32, one vector a row.
        count: Outliers per vector, even.

    Returns:
        [V, count] positions. Largest first, then smallest; of equal elements the first one; no
        position twice.
    """
    left_VL = x_VL.copy()
    rows = np.arange(len(x_VL))
    columns: list[NDArray[np.int64]] = []
    for _ in range(count // 2):
        columns.append(np.argmax(left_VL, axis=1))
        left_VL[rows, columns[-1]] = -np.inf
    left_VL[np.isneginf(left_VL)] = np.inf
    for _ in range(count // 2):
        columns.append(np.argmin(left_VL, axis=1))
        left_VL[rows, columns[-1]] = np.inf
    return np.stack(columns, axis=1) if columns else np.zeros((len(x_VL), 0), np.int64)
