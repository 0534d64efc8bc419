"""One page: `chunk` tokens of one KV head to packed words, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gear_trt.reference.half import FloatArray, HalfArray, half_nearest
from gear_trt.reference.lowrank import Factors, fit_factors
from gear_trt.reference.outliers import find_outliers
from gear_trt.reference.pack import (
    CodeArray,
    WordArray,
    pack_array,
    pack_plane,
    unpack_array,
    unpack_plane,
)
from gear_trt.reference.quantize import quantize
from gear_trt.reference.rotate import rotate
from gear_trt.spec.config import PASS_THROUGH_BITS, CompressionConfig
from gear_trt.spec.layout import SUPER_BLOCK, PageLayout, layout_variables, page_layout

SIDES = ("key", "value")


def compress_page(
    keys_CD: FloatArray | HalfArray, values_CD: FloatArray | HalfArray, config: CompressionConfig
) -> WordArray:
    """Compress one page.

    Args:
        keys_CD: [C, D] rows of the residual buffer (float16; float32 for 32-bit configs),
            post-RoPE, finite.
        values_CD: [C, D], same dtype, finite.
        config: The compression config; C is its `chunk`.

    Returns:
        [page_words] int32.

    Raises:
        ValueError: A value is not finite, or the shape is not [chunk, D].
    """
    layout = page_layout(config, keys_CD.shape[1])
    words = np.zeros(layout.page_words, np.int32)
    for side, x_CD in zip(SIDES, (keys_CD, values_CD), strict=True):
        if len(x_CD) != config.chunk or not np.isfinite(x_CD).all():
            raise ValueError(f"{side}s must be {config.chunk} finite rows")
        for name, packed in _compress_side(side, x_CD, config).items():
            field = layout.fields[f"{side}_{name}"]
            words[field.offset : field.offset + field.words] = packed
    return words


def decompress_page(
    words: WordArray, config: CompressionConfig, head_dim: int
) -> tuple[FloatArray, FloatArray]:
    """Return the keys and values [C, D] float32 that a page stands for, rotation undone."""
    keys_CD = decode_side(words, "key", config, head_dim)
    values_CD = decode_side(words, "value", config, head_dim)
    return (
        rotate(keys_CD) if config.rotate_keys else keys_CD,
        rotate(values_CD) if config.rotate_values else values_CD,
    )


def decode_side(
    words: WordArray, side: str, config: CompressionConfig, head_dim: int
) -> FloatArray:
    """Return [C, D] float32 of one side, still rotated: codes, low rank and outliers added up."""
    bits = getattr(config, f"{side}_bits")
    if bits >= PASS_THROUGH_BITS:
        field = page_layout(config, head_dim).fields[f"{side}_exact"]
        stored = words[field.offset : field.offset + field.words]
        dtype = config.buffer_dtype
        return unpack_array(stored, (config.chunk, head_dim), dtype, bits).astype(np.float32)
    part = _SideReader(words, side, config, head_dim)
    x_CD = _from_vectors(side, part.dequantized_VL())
    if config.rank:
        x_CD = x_CD + part.factors().product_CD()
    x_VL = _to_vectors(side, x_CD).copy()
    deltas_VO, indices_VO = part.outliers()
    np.put_along_axis(
        x_VL, indices_VO, np.take_along_axis(x_VL, indices_VO, axis=1) + deltas_VO, axis=1
    )
    return _from_vectors(side, x_VL)


def _to_vectors(side: str, x_CD: NDArray[Any]) -> NDArray[Any]:
    """[C, D] to [V, L]: K vectors are channels, V vectors are tokens."""
    return x_CD.T if side == "key" else x_CD


_from_vectors = _to_vectors


def _compress_side(
    side: str, x_CD: FloatArray | HalfArray, config: CompressionConfig
) -> dict[str, WordArray]:
    """Return the packed fields of one side by name, without the ones that the config leaves out."""
    bits = getattr(config, f"{side}_bits")
    if bits >= PASS_THROUGH_BITS:
        return {"exact": pack_array(x_CD.astype(config.buffer_dtype), bits)}
    rotated_CD = x_CD.astype(np.float32)
    if getattr(config, f"rotate_{side}s"):
        rotated_CD = rotate(rotated_CD)
    x_VL = np.ascontiguousarray(_to_vectors(side, rotated_CD))

    outliers_VO = find_outliers(x_VL, config.outliers)
    quantized = quantize(
        x_VL,
        outliers_VO,
        bits=bits,
        group_size=config.group_size,
        metadata_bits=config.metadata_bits,
        is_fitted=bool(config.fit_ranges),
    )
    fields = _pack_codes(quantized.codes_VL.T, bits)
    for name, stored in quantized.stored.items():
        fields[name] = pack_array(stored, stored.dtype.itemsize * 8)

    approximation_VL = quantized.dequantized_VL
    if config.rank:
        error_VL = x_VL - quantized.dequantized_VL
        np.put_along_axis(error_VL, outliers_VO, 0, axis=1)
        factors = fit_factors(
            np.ascontiguousarray(_from_vectors(side, error_VL)),
            rank=config.rank,
            power_iters=config.power_iters,
            factor_bits=config.factor_bits,
        )
        fields["token_factors"] = pack_array(factors.token_RC, config.factor_bits)
        fields["channel_factors"] = pack_array(factors.channel_RD, config.factor_bits)
        if config.factor_bits < 16:
            fields["factor_scales"] = pack_array(factors.scales_R, 16)
        approximation_VL = approximation_VL + _to_vectors(side, factors.product_CD())
    if config.outliers:
        deltas_VO = np.take_along_axis(x_VL - approximation_VL, outliers_VO, axis=1)
        fields["outlier_deltas"] = pack_array(half_nearest(deltas_VO), 16)
        fields["outlier_indices"] = pack_array(outliers_VO.astype(np.uint8), 8)
    return fields


def _pack_codes(codes_lanes_quads: CodeArray, bits: int) -> dict[str, WordArray]:
    if bits != 3:
        return {"codes": pack_plane(codes_lanes_quads, bits)}
    return {
        "codes": pack_plane(codes_lanes_quads & np.uint8(3), 2),
        "codes_high": pack_plane(codes_lanes_quads >> np.uint8(2), 1),
    }


class _SideReader:
    """Typed access to the fields of one quantized side of a page."""

    def __init__(
        self, words: WordArray, side: str, config: CompressionConfig, head_dim: int
    ) -> None:
        self._words = words
        self._side = side
        self._config = config
        self._layout: PageLayout = page_layout(config, head_dim)
        self._head_dim = head_dim
        self._vectors = head_dim if side == "key" else config.chunk
        self._length = config.chunk if side == "key" else head_dim
        self._groups = layout_variables(config, head_dim)[f"{side}_groups"]

    def _field(self, name: str) -> WordArray:
        field = self._layout.fields[f"{self._side}_{name}"]
        return self._words[field.offset : field.offset + field.words]

    def codes_VL(self) -> CodeArray:
        bits = getattr(self._config, f"{self._side}_bits")
        shape = (self._length, self._vectors)
        if bits != 3:
            return unpack_plane(self._field("codes"), *shape, bits).T
        low = unpack_plane(self._field("codes"), *shape, 2)
        high = unpack_plane(self._field("codes_high"), *shape, 1)
        return (low | (high << np.uint8(2))).T

    def metadata_GV(self) -> tuple[FloatArray, FloatArray]:
        """Return scales and mins [groups, V] float32."""
        shape = (self._groups, self._vectors)
        if self._config.metadata_bits == 16:
            scales = unpack_array(self._field("scales"), shape, "f2", 16)
            mins = unpack_array(self._field("mins"), shape, "f2", 16)
            return scales.astype(np.float32), mins.astype(np.float32)
        scales = unpack_array(self._field("scales"), shape, "u1", 8).astype(np.float32)
        mins = unpack_array(self._field("mins"), shape, "i1", 8).astype(np.float32)
        return (
            scales * self._per_entry("super_scales", shape),
            mins * self._per_entry("super_mins", shape),
        )

    def _per_entry(self, name: str, shape: tuple[int, int]) -> FloatArray:
        size = shape[0] * shape[1]
        blocks = -(-size // SUPER_BLOCK)
        supers = unpack_array(self._field(name), (blocks,), "f2", 16).astype(np.float32)
        return np.repeat(supers, SUPER_BLOCK)[:size].reshape(shape)

    def dequantized_VL(self) -> FloatArray:
        scales_GV, mins_GV = self.metadata_GV()
        group_of_L = np.arange(self._length) // self._config.group_size
        return (
            self.codes_VL().astype(np.float32) * scales_GV.T[:, group_of_L]
            + mins_GV.T[:, group_of_L]
        )

    def factors(self) -> Factors:
        config, rank, bits = self._config, self._config.rank, self._config.factor_bits
        dtype = "f2" if bits == 16 else "i1"
        scales_R = (
            np.ones(rank, np.float16)
            if bits == 16
            else unpack_array(self._field("factor_scales"), (rank,), "f2", 16)
        )
        return Factors(
            unpack_array(self._field("token_factors"), (rank, config.chunk), dtype, bits),
            unpack_array(self._field("channel_factors"), (rank, self._head_dim), dtype, bits),
            scales_R.astype(np.float16),
        )

    def outliers(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """Return deltas [V, O] float32 and positions [V, O]."""
        shape = (self._vectors, self._config.outliers)
        deltas = unpack_array(self._field("outlier_deltas"), shape, "f2", 16)
        indices = unpack_array(self._field("outlier_indices"), shape, "u1", 8)
        return deltas.astype(np.float32), indices.astype(np.int64)
