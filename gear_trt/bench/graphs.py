"""GearAttention graphs built by hand: one node, or the pieces of a small model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import DOMAIN, GEAR_ATTENTION, graph, layout_hash
from gear_trt.spec.ops import LAYOUT_HASH_KEY, OPSET_VERSION

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
SHARED = (graph.PAGE_TABLE, graph.SLOTS, graph.PAST_LENGTHS, graph.NEW_LENGTHS)
TOKENS = ("query", "key", "value")
OUTPUT = "output"


def attributes(layer: LayerFacts, index: int = 0, **changes: object) -> dict[str, Any]:
    """Return the attributes of a node, with single ones replaced."""
    return {
        "num_heads": layer.num_heads,
        "num_kv_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "layer": index,
        "scale": layer.head_dim**-0.5,
        **layer.config.model_dump(),
        "layout_hash": layout_hash(),
        "plugin_version": "1",
        "plugin_namespace": DOMAIN,
        **changes,
    }


def attention_node(
    inputs: Sequence[str], output: str, index: int, values: dict[str, Any]
) -> onnx.NodeProto:
    """Return the node of one layer: query, key and value are `inputs`, `values` its attributes."""
    state = [graph.page_pool_input(index), graph.residual_buffer_input(index)]
    return helper.make_node(
        GEAR_ATTENTION.name,
        [*inputs, *state, *SHARED],
        [output, graph.page_pool_output(index), graph.residual_buffer_output(index)],
        name=f"attention.{index}",
        domain=DOMAIN,
        **values,
    )


def state_values(
    index: int, buffer_type: str
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Return the value infos of a layer's state: (inputs, outputs)."""
    pool = ("num_pages", None, None)
    rows = ("slots", None, None, None, None)
    inputs, outputs = (
        [
            helper.make_tensor_value_info(pool_name, TensorProto.INT32, pool),
            helper.make_tensor_value_info(rows_name, ONNX_TYPES[buffer_type], rows),
        ]
        for pool_name, rows_name in (
            (graph.page_pool_input(index), graph.residual_buffer_input(index)),
            (graph.page_pool_output(index), graph.residual_buffer_output(index)),
        )
    )
    return inputs, outputs


def shared_values() -> list[onnx.ValueInfoProto]:
    """Return the value infos of the inputs that all layers share."""
    shapes = (("B", "max_pages"), ("B",), ("B",), ("B",))
    return [
        helper.make_tensor_value_info(name, TensorProto.INT32, shape)
        for name, shape in zip(SHARED, shapes, strict=True)
    ]


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """Return a model that carries the layout hash, as exported ones do."""
    model = helper.make_model(
        helper.make_graph(nodes, "gear", inputs, outputs, list(initializers)),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, OPSET_VERSION)],
        ir_version=10,
    )
    helper.set_model_props(model, {LAYOUT_HASH_KEY: layout_hash()})
    return model


def one_node_model(
    layer: LayerFacts,
    *,
    dtype: str = "float32",
    buffer_type: str | None = None,
    values: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    """Return one GearAttention node whose query, key and value are graph inputs."""
    inputs, outputs = state_values(0, buffer_type or layer.config.buffer_dtype)
    tokens = [
        helper.make_tensor_value_info(name, ONNX_TYPES[dtype], ("B", "S", None)) for name in TOKENS
    ]
    output = helper.make_tensor_value_info(OUTPUT, ONNX_TYPES[dtype], ("B", "S", None))
    node = attention_node(TOKENS, OUTPUT, 0, values or attributes(layer, 0))
    return make_model([node], [*tokens, *inputs, *shared_values()], [output, *outputs])
