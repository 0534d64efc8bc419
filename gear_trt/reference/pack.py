"""Fields to words and back: the code order, and plain little-endian arrays."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gear_trt.spec.layout import CODE_SHIFT, CODE_UNIT, CODE_WORD

WordArray = NDArray[np.int32]
CodeArray = NDArray[np.uint8]


@lru_cache(maxsize=64)
def code_positions(
    lanes: int, quads: int, bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return word and shift of every element of a plane, both [lanes, quads]."""
    lane, quad = np.meshgrid(np.arange(lanes), np.arange(quads), indexing="ij")
    variables = {"lane": lane, "quad": quad, "lanes": lanes, "bits": bits}
    for name, expression in (("unit", CODE_UNIT), ("word", CODE_WORD), ("shift", CODE_SHIFT)):
        variables[name] = eval(expression, {"__builtins__": {}}, variables)  # noqa: S307
    return np.asarray(variables["word"]), np.asarray(variables["shift"])


def pack_plane(codes: CodeArray, bits: int) -> WordArray:
    """Pack [lanes, quads] codes of one plane into words, in code order."""
    word, shift = code_positions(*codes.shape, bits)
    words = np.zeros(codes.size * bits // 32, np.uint32)
    np.bitwise_or.at(words, word.ravel(), codes.ravel().astype(np.uint32) << shift.ravel())
    return words.view(np.int32)


def unpack_plane(words: WordArray, lanes: int, quads: int, bits: int) -> CodeArray:
    """Inverse of `pack_plane`: [lanes, quads] codes."""
    word, shift = code_positions(lanes, quads, bits)
    return ((words.view(np.uint32)[word] >> shift) & ((1 << bits) - 1)).astype(np.uint8)


def pack_array(values: NDArray[Any], bits: int) -> WordArray:
    """Pack an array of 16-, 8- or 4-bit elements in C order, first element in the lowest bits."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if bits == 4:
        nibbles = flat.astype(np.uint8) & 15
        nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
        flat = nibbles[0::2] | (nibbles[1::2] << 4)
    raw = flat.view(np.uint8)
    return np.append(raw, np.zeros(-raw.size % 4, np.uint8)).view(np.int32)


def unpack_array(words: WordArray, shape: tuple[int, ...], dtype: str, bits: int) -> NDArray[Any]:
    """Inverse of `pack_array`; 4-bit elements come back as int8."""
    count = int(np.prod(shape))
    raw = words.view(np.uint8)
    if bits == 4:
        nibbles = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
        return (nibbles - 16 * (nibbles > 7)).astype(np.int8).reshape(shape)
    return raw[: count * bits // 8].view(dtype).reshape(shape)
