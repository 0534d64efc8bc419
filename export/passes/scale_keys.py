"""Puts scales of key channels in front of every `GearAttention`: K · s and Q / s."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gear_trt.export.passes.nodes import attention_nodes
from gear_trt.export.passes.sites import Array, present
from gear_trt.spec import GEAR_ATTENTION

QUERY, KEY = (
    [item.name for item in GEAR_ATTENTION.inputs].index(name) for name in ("query", "key")
)
"""Which inputs of the op."""


def scale_keys(model: ir.Model, scales: Sequence[Array | None]) -> None:
    """Multiply every layer's keys by its scales, and divide its queries by them.

    Scores stay what they are: q · k = Σ (q / s) · (k · s).

    Args:
        model: Routed.
        scales: Per layer [H, D] float32; None leaves a layer as it is.
    """
    for node in attention_nodes(model.graph):
        layer = node.attributes.get_int("layer", -1)
        scales_HD = scales[layer]
        if scales_HD is None:
            continue
        rounded_HD = scales_HD.astype(_dtype(node, KEY).numpy())
        inverse_HD = 1 / rounded_HD.astype(np.float32)  # of what keys are really multiplied by
        heads_per_scale = node.attributes.get_int("num_heads", 0) // len(scales_HD)
        divisors_ND = np.repeat(inverse_HD, heads_per_scale, axis=0)
        _multiply(model.graph, node, KEY, f"key_scales.{layer}", rounded_HD)
        _multiply(model.graph, node, QUERY, f"query_scales.{layer}", divisors_ND)


def _multiply(main: ir.Graph, node: ir.Node, index: int, name: str, factors: Array) -> None:
    """Multiply an input [B, S, heads · D] of a node by factors [heads, D]."""
    value, dtype = present(node.inputs[index]), _dtype(node, index)
    tensor = ir.tensor(factors.reshape(-1).astype(dtype.numpy()), name=name)
    factor = ir.val(name, dtype, [factors.size])
    factor.const_value = tensor
    main.register_initializer(factor)
    product = ir.val(f"{name}.product", dtype, value.shape)
    main.insert_before(node, ir.node("Mul", [value, factor], outputs=[product], name=name))
    node.replace_input_with(index, product)


def _dtype(node: ir.Node, index: int) -> ir.DataType:
    return present(present(node.inputs[index]).dtype)
