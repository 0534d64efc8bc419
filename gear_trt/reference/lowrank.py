"""The low-rank part: power iteration on the quantization error (GEAR appendix, SVDSolver)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gear_trt.reference.half import FloatArray, HalfArray, half_nearest


@dataclass(frozen=True)
class Factors:
    """Low-rank factors as stored: error_CD ≈ Σ_j scale_j · token[j, :] ⊗ channel[j, :].

    Attributes:
        token_RC: [r, C] float16, or int8 holding 8- or 4-bit integers.
        channel_RD: [r, D], same dtype.
        scales_R: [r] float16; ones in effect (and absent from the page) for FP16 factors.
    """

    token_RC: NDArray[np.generic]
    channel_RD: NDArray[np.generic]
    scales_R: HalfArray

    def product_CD(self) -> FloatArray:
        """Return the correction [C, D] that the stored factors stand for."""
        scaled_RC = self.token_RC.astype(np.float32) * self.scales_R.astype(np.float32)[:, None]
        return scaled_RC.T @ self.channel_RD.astype(np.float32)


def start_sign(token: int, column: int) -> float:
    """Return the fixed ±1 entry of the start matrix: a hash, so that no error pattern aligns."""
    mixed = (token * 0x9E3779B1 + (column + 1) * 0x85EBCA77) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    mixed ^= mixed >> 12
    return -1.0 if mixed & 1 else 1.0


def fit_factors(error_CD: FloatArray, *, rank: int, power_iters: int, factor_bits: int) -> Factors:
    """Fit a rank-r approximation of the quantization error and round it to the stored format.

    Each pass orthonormalizes the channel side (r × r work only); the token side carries the
    magnitude. A direction without energy gives zero factors, never NaN.

    Args:
        error_CD: [C, D] float32, 0 at outlier slots.
        rank: r.
        power_iters: Passes; each is one product with the error and one with its transpose.
        factor_bits: 16, 8 or 4.
    """
    tokens = len(error_CD)
    token_CR = np.array(
        [[start_sign(t, j) for j in range(rank)] for t in range(tokens)], np.float32
    ).reshape(tokens, rank)
    for _ in range(power_iters):
        channel_DR = orthonormalize(error_CD.T @ token_CR)
        token_CR = error_CD @ channel_DR
    return _round(token_CR.T, channel_DR.T, factor_bits)


def orthonormalize(columns_DR: FloatArray) -> FloatArray:
    """Modified Gram-Schmidt, twice per column; a column that vanishes becomes 0.

    A column counts as vanished when less than 1e-5 of its norm is left: that rest is rounding.
    """
    result = columns_DR.copy()
    for j in range(result.shape[1]):
        before = np.linalg.norm(result[:, j])
        for _ in range(2):
            for i in range(j):
                result[:, j] -= (result[:, i] @ result[:, j]) * result[:, i]
        norm = np.linalg.norm(result[:, j])
        result[:, j] *= 1 / norm if norm > np.float32(1e-5) * before else 0
    return result


def _round(token_RC: FloatArray, channel_RD: FloatArray, factor_bits: int) -> Factors:
    if factor_bits == 16:
        ones_R = np.ones(len(token_RC), np.float16)
        return Factors(half_nearest(token_RC), half_nearest(channel_RD), ones_R)
    top = np.float32((1 << (factor_bits - 1)) - 1)
    token_RC, token_unit_R = _to_integers(token_RC, top)
    channel_RD, channel_unit_R = _to_integers(channel_RD, top)
    scales_R = half_nearest(token_unit_R * channel_unit_R)
    return Factors(token_RC.astype(np.int8), channel_RD.astype(np.int8), scales_R)


def _to_integers(rows_RL: FloatArray, top: np.float32) -> tuple[FloatArray, FloatArray]:
    """Round each row to integers −top..top; return them and the value of one unit per row."""
    unit_R = np.abs(rows_RL).max(axis=1) / top
    inverse_R = np.divide(np.float32(1), unit_R, out=np.zeros_like(unit_R), where=unit_R > 0)
    return np.rint(np.clip(rows_RL * inverse_R[:, None], -top, top)), unit_R
