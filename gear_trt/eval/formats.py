"""What the formats of our peers make of numbers: each takes values and returns what it gives back.

All take and return [..., C, D] float32: C tokens of one KV head, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Format = Callable[[Tensor], Tensor]

CHANNELS = -1
BLOCK = 32
"""Consecutive channels that share a scale in llama.cpp."""
FP8_MAX = float(torch.finfo(torch.float8_e4m3fn).max)


def per_token(x_CD: Tensor, *, bits: int, group: int) -> Tensor:
    """Asymmetric codes; a group is consecutive channels of a token, with FP16 scale and min."""
    groups = _grouped(x_CD, min(group, x_CD.shape[CHANNELS]))
    low = groups.amin(CHANNELS, keepdim=True)
    steps = 2**bits - 1
    scale = _half((groups.amax(CHANNELS, keepdim=True) - low) / steps)
    low = _half(low)
    codes = _divided(groups - low, scale).round().clamp(0, steps)
    return (codes * scale + low).flatten(-2)


def fp8(x_CD: Tensor) -> Tensor:
    """E4M3 without a scale, saturated: the default of servers that calibrate nothing."""
    return x_CD.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).to(x_CD.dtype)


def symmetric(x_CD: Tensor, *, bits: int, largest: Tensor) -> Tensor:
    """Signed codes with fixed scales, as ONNX Runtime's quantized caches have them.

    Args:
        x_CD: Values.
        bits: Bits per code.
        largest: Magnitude that the largest code stands for, broadcast over the values.
    """
    limit = 2 ** (bits - 1)
    scale: Tensor = largest / (limit - 1)
    codes = _divided(x_CD, scale).round().clamp(-limit, limit - 1)
    return codes * scale


def q8_0(x_CD: Tensor) -> Tensor:
    """llama.cpp's blocks of 32 channels: int8 codes and an FP16 scale."""
    blocks = _grouped(x_CD, BLOCK)
    scale = blocks.abs().amax(CHANNELS, keepdim=True) / 127
    codes = _divided(blocks, scale)
    codes = codes.sign() * (codes.abs() + 0.5).floor()  # C's roundf: halves away from zero
    return (codes * _half(scale)).flatten(-2)


def q4_0(x_CD: Tensor) -> Tensor:
    """llama.cpp's blocks of 32 channels: 4-bit codes whose −8 is the largest magnitude."""
    blocks = _grouped(x_CD, BLOCK)
    place = blocks.abs().argmax(CHANNELS, keepdim=True)
    scale = blocks.gather(CHANNELS, place) / -8
    codes = (_divided(blocks, scale) + 8.5).floor().clamp(max=15) - 8
    return (codes * _half(scale)).flatten(-2)


def _grouped(x_CD: Tensor, size: int) -> Tensor:
    """Split the channels: [..., C, D / size, size]."""
    return x_CD.reshape(*x_CD.shape[:CHANNELS], -1, size)


def _half(x: Tensor) -> Tensor:
    return x.half().to(x.dtype)


def _divided(x: Tensor, scale: Tensor) -> Tensor:
    """Return x / scale, and 0 where the scale is 0."""
    return torch.where(scale == 0, 0.0, x / scale)
