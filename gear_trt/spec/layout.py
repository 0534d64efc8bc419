"""The page layout: every field of a compressed page, as expressions. THE definition.

A page is `chunk` (C) tokens of one KV head, K and V together, in `int32` words. Python evaluates
the expressions below; `gear_trt.spec.codegen` writes them into the C++ header as `constexpr`
functions. They use integer arithmetic that means the same in both languages (`//` is written as
`/` in C++; nothing is negative).

Terms: side = key or value; vector = the elements that share outliers (K: one channel over the
page's tokens, V: one token over the head's channels); group = `group_size` consecutive elements
of a vector that share a scale and a min.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache

from gear_trt.spec.config import CompressionConfig

WORD_BITS = 32
FIELD_ALIGNMENT_BYTES = 16
"""Start of every field: what bulk copies and 128-bit loads need."""
PAGE_ALIGNMENT_BYTES = 64
"""Stride of pages: one CPU cache line, two DRAM sectors of a GPU (docs/adr/0002)."""
SUPER_BLOCK = 32
"""Consecutive 8-bit scales (and mins) that share one FP16 super-scale."""
LANES = 16
"""Words that a SIMD register of 512 bits holds; the lane axis of the code order."""
HEAD_DIM_MULTIPLE = 16
MAX_HEAD_DIM = 256

CONFIG_VARIABLES = tuple(CompressionConfig.model_fields)
"""Variables of the expressions: every config field, and `head_dim`."""

DERIVED: dict[str, str] = {
    "key_quantized": "key_bits < 16",
    "value_quantized": "value_bits < 16",
    "key_groups": "(chunk + group_size - 1) // group_size",
    "value_groups": "(head_dim + group_size - 1) // group_size",
    "key_plane_bits": "key_bits - (key_bits == 3)",
    "value_plane_bits": "value_bits - (value_bits == 3)",
    "key_supers": f"(key_groups * head_dim + {SUPER_BLOCK - 1}) // {SUPER_BLOCK}",
    "value_supers": f"(value_groups * chunk + {SUPER_BLOCK - 1}) // {SUPER_BLOCK}",
}
"""Variables computed from the config and `head_dim`, in order."""


@dataclass(frozen=True)
class Field:
    """One field of a page.

    Attributes:
        name: `<side>_<what>`.
        bits: Expression: bits per element.
        count: Expression: number of elements; 0 where the config leaves the field out.
        axes: Order of the elements, slowest axis first.
        doc: What an element is.
    """

    name: str
    bits: str
    count: str
    axes: str
    doc: str


def _codes(side: str) -> list[Field]:
    elements = "chunk * head_dim"
    return [
        Field(
            f"{side}_exact",
            f"16 + 16 * ({side}_bits == 32)",
            f"(1 - {side}_quantized) * {elements}",
            "[chunk, head_dim]",
            "f16 or f32 values of a pass-through side",
        ),
        Field(
            f"{side}_codes",
            f"{side}_plane_bits",
            f"{side}_quantized * {elements}",
            "code order",
            "codes; of 3-bit codes the low 2 bits",
        ),
        Field(
            f"{side}_codes_high",
            "1",
            f"({side}_bits == 3) * {elements}",
            "code order",
            "bit 2 of 3-bit codes",
        ),
    ]


def _corrections(side: str, vectors: str) -> list[Field]:
    quantized = f"{side}_quantized"
    entries = f"{quantized} * {side}_groups * {vectors}"
    return [
        Field(
            f"{side}_scales",
            "metadata_bits",
            entries,
            f"[{side}_groups, {vectors}]",
            "f16, or u8 in units of the super-scale",
        ),
        Field(
            f"{side}_mins",
            "metadata_bits",
            entries,
            f"[{side}_groups, {vectors}]",
            "f16, or i8 in units of the super-min",
        ),
        Field(
            f"{side}_super_scales",
            "16",
            f"{quantized} * (metadata_bits == 8) * {side}_supers",
            f"[{side}_supers]",
            "f16, one for 32 consecutive scales",
        ),
        Field(
            f"{side}_super_mins",
            "16",
            f"{quantized} * (metadata_bits == 8) * {side}_supers",
            f"[{side}_supers]",
            "f16, one for 32 consecutive mins",
        ),
        Field(
            f"{side}_token_factors",
            "factor_bits",
            f"{quantized} * rank * chunk",
            "[rank, chunk]",
            "f16, i8, or 4-bit two's complement, low nibble first",
        ),
        Field(
            f"{side}_channel_factors",
            "factor_bits",
            f"{quantized} * rank * head_dim",
            "[rank, head_dim]",
            "f16, i8, or 4-bit two's complement, low nibble first",
        ),
        Field(
            f"{side}_factor_scales",
            "16",
            f"{quantized} * (factor_bits < 16) * rank",
            "[rank]",
            "f16, product of the scales of a token and a channel factor",
        ),
        Field(
            f"{side}_outlier_deltas",
            "16",
            f"{quantized} * outliers * {vectors}",
            f"[{vectors}, outliers]",
            "f16, value minus everything else that the page says of its slot",
        ),
        Field(
            f"{side}_outlier_indices",
            "8",
            f"{quantized} * outliers * {vectors}",
            f"[{vectors}, outliers]",
            "u8, position inside the vector",
        ),
    ]


FIELDS: tuple[Field, ...] = (
    *_codes("key"),
    *_codes("value"),
    *_corrections("key", "head_dim"),
    *_corrections("value", "chunk"),
)
"""Every field, in the order in which a page stores them. Code planes come first: their sizes are
multiples of 64 bytes, so that a plane never straddles more cache lines than it fills."""

CODE_UNIT = "(quad // 4) * (lanes // 16) + lane // 16"
CODE_WORD = "unit // (8 // bits) * 16 + lane % 16"
CODE_SHIFT = "8 * (quad % 4) + bits * (unit % (8 // bits))"
"""Code order: where the element (lane, quad) of a plane of `bits`-bit codes sits.

K has tokens on the lane axis and channels on the quad axis, V the reverse. Sixteen lanes by four
quads make a unit of 64 codes, one per byte of a 64-byte line; a line of b-bit codes interleaves
8 // b units inside each byte. One shift and one mask of a line thus give 64 codes as bytes (what
integer dot products read) or 16 codes as words (what float kernels read)."""


@dataclass(frozen=True)
class PlacedField:
    """A field at its place inside a page: `offset` and `words` count int32 words."""

    name: str
    bits: int
    count: int
    offset: int
    words: int


@dataclass(frozen=True)
class PageLayout:
    """Where every field sits, for one config and head_dim; `page_words` is the stride."""

    fields: dict[str, PlacedField]
    page_words: int

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: `chunk` tokens of one KV head, K and V."""
        return self.page_words * WORD_BITS // 8


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def layout_variables(config: CompressionConfig, head_dim: int) -> dict[str, int]:
    """Return every variable of the layout expressions.

    Args:
        config: The compression config.
        head_dim: D, channels of one head; a multiple of 16, at most 256.
    """
    variables: dict[str, int] = {**config.model_dump(), "head_dim": head_dim}
    for name, expression in DERIVED.items():
        variables[name] = _evaluate(expression, variables)
    return variables


def _evaluate(expression: str, variables: dict[str, int]) -> int:
    return int(eval(expression, {"__builtins__": {}}, variables))  # noqa: S307 - our own constants


@lru_cache(maxsize=64)
def page_layout(config: CompressionConfig, head_dim: int) -> PageLayout:
    """Place the fields of a page.

    Args:
        config: The compression config.
        head_dim: D, channels of one head; a multiple of 16, at most 256.

    Raises:
        ValueError: `head_dim` is not a multiple of 16 in 16..256.
    """
    if head_dim % HEAD_DIM_MULTIPLE or not 0 < head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be a multiple of 16 up to 256, got {head_dim}")
    variables = layout_variables(config, head_dim)
    word_bytes = WORD_BITS // 8
    fields: dict[str, PlacedField] = {}
    end_bytes = 0
    for field in FIELDS:
        bits, count = _evaluate(field.bits, variables), _evaluate(field.count, variables)
        start = _round_up(end_bytes, FIELD_ALIGNMENT_BYTES)
        words = -(-count * bits // WORD_BITS)
        fields[field.name] = PlacedField(field.name, bits, count, start // word_bytes, words)
        end_bytes = start + words * word_bytes if count else end_bytes
    return PageLayout(fields, _round_up(end_bytes, PAGE_ALIGNMENT_BYTES) // word_bytes)


def bits_per_element(config: CompressionConfig, head_dim: int) -> float:
    """Bits that a page spends per K or V element, padding and all corrections included."""
    return page_layout(config, head_dim).page_words * WORD_BITS / (2 * config.chunk * head_dim)


def layout_hash() -> str:
    """Return 16 hex digits that change whenever a page or the op's interface changes.

    Libraries, ONNX files, manifests and cache files carry it; a mismatch refuses to load.
    """
    from gear_trt.spec.ops import GEAR_ATTENTION

    definition = {
        "fields": [(field.name, field.bits, field.count, field.axes) for field in FIELDS],
        "derived": DERIVED,
        "code_order": [CODE_UNIT, CODE_WORD, CODE_SHIFT],
        "alignment": [FIELD_ALIGNMENT_BYTES, PAGE_ALIGNMENT_BYTES, SUPER_BLOCK, LANES],
        "op": [GEAR_ATTENTION.name, GEAR_ATTENTION.version],
        "tensors": [
            (tensor.name, tensor.dtype, tensor.shape, tensor.alias_of)
            for tensor in (*GEAR_ATTENTION.inputs, *GEAR_ATTENTION.outputs)
        ],
        "attributes": [(item.name, item.kind, item.default) for item in GEAR_ATTENTION.attributes],
    }
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
