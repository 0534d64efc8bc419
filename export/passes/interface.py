"""The tensors through which the runtime and an exported graph meet (`spec.graph`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from gear_trt.export.passes.sites import AttentionFacts
from gear_trt.spec import CompressionConfig, graph, page_layout

_BUFFER_TYPES = {"float16": ir.DataType.FLOAT16, "float32": ir.DataType.FLOAT}


def _int32(name: str, shape: Sequence[int | str]) -> ir.Value:
    return ir.val(name, ir.DataType.INT32, shape)


@dataclass(frozen=True)
class SharedInputs:
    """Inputs that every layer reads, [B] int32 but for `page_table`: [B, max_pages] int32."""

    page_table: ir.Value = field(
        default_factory=lambda: _int32(graph.PAGE_TABLE, ("B", "max_pages"))
    )
    slots: ir.Value = field(default_factory=lambda: _int32(graph.SLOTS, ("B",)))
    past_lengths: ir.Value = field(default_factory=lambda: _int32(graph.PAST_LENGTHS, ("B",)))
    new_lengths: ir.Value = field(default_factory=lambda: _int32(graph.NEW_LENGTHS, ("B",)))


@dataclass(frozen=True)
class LayerState:
    """State of one layer: inputs of the graph, and the outputs that alias them.

    Attributes:
        page_pool: [num_pages, H, page_words] int32.
        residual_buffer: [slots, H, 2, sinks + C, D] float16 or float32.
        page_pool_out: As `page_pool`.
        residual_buffer_out: As `residual_buffer`.
    """

    page_pool: ir.Value
    residual_buffer: ir.Value
    page_pool_out: ir.Value
    residual_buffer_out: ir.Value


def layer_state(layer: int, facts: AttentionFacts, config: CompressionConfig) -> LayerState:
    """Return new tensors for the state of one layer."""
    heads, head_dim = facts.num_kv_heads, facts.head_dim
    pool = ("num_pages", heads, page_layout(config, head_dim).page_words)
    buffer = ("slots", heads, 2, config.sinks + config.chunk, head_dim)
    buffer_type = _BUFFER_TYPES[config.buffer_dtype]
    return LayerState(
        _int32(graph.page_pool_input(layer), pool),
        ir.val(graph.residual_buffer_input(layer), buffer_type, buffer),
        _int32(graph.page_pool_output(layer), pool),
        ir.val(graph.residual_buffer_output(layer), buffer_type, buffer),
    )
