"""Hadamard rotation inside a head: orthonormal, symmetric, its own inverse."""

from __future__ import annotations

import numpy as np

from gear_trt.reference.half import FloatArray


def hadamard_block(head_dim: int) -> int:
    """Return the block size: the largest power of two that divides `head_dim`."""
    return head_dim & -head_dim


def rotate(x: FloatArray) -> FloatArray:
    """Multiply the last axis by the normalized block-Hadamard matrix.

    Args:
        x: [..., D] float32.

    Returns:
        [..., D] float32. Butterflies of width 1, 2, 4, ... in FP32, then one factor
        1/sqrt(block): kernels keep this order, so that results are equal to the last bit.
    """
    head_dim = x.shape[-1]
    block = hadamard_block(head_dim)
    y = x.astype(np.float32)
    width = 1
    while width < block:
        pairs = y.reshape(*x.shape[:-1], head_dim // (2 * width), 2, width)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack([low + high, low - high], axis=-2).reshape(x.shape)
        width *= 2
    return np.asarray(y * (np.float32(1) / np.sqrt(np.float32(block))), np.float32)
