"""The op table: one entry per custom op. Hosts, exporters, tests and docs derive from it."""

from __future__ import annotations

from dataclasses import dataclass

from gear_trt.spec.config import CompressionConfig

DOMAIN = "gear"
"""ONNX domain, TensorRT plugin namespace and torch library of every op."""
OPSET_VERSION = 1
ACTIVATION_DTYPES = ("float32", "float16", "bfloat16")
"""Types that activations may have; their places are their numbers in the C interface."""
LAYOUT_HASH_KEY = "gear.layout_hash"
"""Key of the layout hash in ONNX `metadata_props`."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `shape` names axes.

    `dtype` is `int32`, `T` (activations: one of `ACTIVATION_DTYPES`), or `R` (residual buffer:
    float16, and float32 where the config stores 32 bits).
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    doc: str
    alias_of: str | None = None


@dataclass(frozen=True)
class AttributeSpec:
    """One attribute: `kind` is `int`, `float` or `string`; `default` None means required."""

    name: str
    kind: str
    doc: str
    default: int | float | str | None = None


@dataclass(frozen=True)
class OpSpec:
    """A custom op."""

    name: str
    version: int
    doc: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: tuple[AttributeSpec, ...]


_POOL = ("num_pages", "num_kv_heads", "page_words")
_BUFFER = ("slots", "num_kv_heads", "2", "sinks + chunk", "head_dim")

GEAR_ATTENTION = OpSpec(
    name="GearAttention",
    version=1,
    doc=(
        "Causal attention of the S new tokens of each sequence over its compressed past and over "
        "each other, computed from the packed pages; then the new tokens are appended, and every "
        "chunk that became full is compressed. State is updated in place."
    ),
    inputs=(
        TensorSpec("query", "T", ("B", "S", "num_heads * head_dim"), "after RoPE"),
        TensorSpec("key", "T", ("B", "S", "num_kv_heads * head_dim"), "after RoPE"),
        TensorSpec("value", "T", ("B", "S", "num_kv_heads * head_dim"), ""),
        TensorSpec("page_pool", "int32", _POOL, "compressed pages of the layer, for all sequences"),
        TensorSpec(
            "residual_buffer",
            "R",
            _BUFFER,
            "per slot and head: K (0) and V (1) rows; `sinks` first tokens, then the newest",
        ),
        TensorSpec(
            "page_table", "int32", ("B", "max_pages"), "page ids of each sequence, in order"
        ),
        TensorSpec("slots", "int32", ("B",), "row of `residual_buffer` that each sequence owns"),
        TensorSpec("past_lengths", "int32", ("B",), "tokens of each sequence before this call"),
        TensorSpec("new_lengths", "int32", ("B",), "valid new tokens of each sequence, 0..S"),
    ),
    outputs=(
        TensorSpec(
            "output",
            "T",
            ("B", "S", "num_heads * head_dim"),
            "attention result; rows at and beyond new_lengths are 0",
        ),
        TensorSpec("page_pool_out", "int32", _POOL, "", alias_of="page_pool"),
        TensorSpec("residual_buffer_out", "R", _BUFFER, "", alias_of="residual_buffer"),
    ),
    attributes=(
        AttributeSpec("num_heads", "int", "N, query heads"),
        AttributeSpec("num_kv_heads", "int", "H, KV heads; N is a multiple"),
        AttributeSpec("head_dim", "int", "D, channels of one head"),
        AttributeSpec("layer", "int", "index of the layer, for error messages"),
        AttributeSpec("scale", "float", "factor of q·k"),
        AttributeSpec("softcap", "float", "s·tanh(score / s) where above 0", 0.0),
        AttributeSpec("sliding_window", "int", "newest tokens that a query sees, 0 = all", 0),
        *(
            AttributeSpec(name, "int", field.description or "")
            for name, field in CompressionConfig.model_fields.items()
        ),
        AttributeSpec("layout_hash", "string", "layout that the graph was exported for"),
        AttributeSpec("plugin_version", "string", "TensorRT creator version", "1"),
        AttributeSpec("plugin_namespace", "string", "TensorRT creator namespace", DOMAIN),
    ),
)

OPS: tuple[OpSpec, ...] = (GEAR_ATTENTION,)
