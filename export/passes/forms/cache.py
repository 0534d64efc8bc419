"""Where a graph appends new keys or values to its past: from graph input to graph output."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gear_trt.export.passes.sites import MismatchError, present

SEQUENCE_AXIS = 2
"""Of past keys and values: [B, H, T, D]."""

_DATA_OPS = frozenset(
    {"Cast", "Div", "Expand", "Identity", "Mul", "Reshape", "Slice", "Transpose", "Unsqueeze"}
)
"""Ops between the grown cache and the attention product; the cache is their first input that is
no constant. What they compute together is checked by running them (`probe`)."""


@dataclass(frozen=True)
class Append:
    """Keys or values of one layer: `past` + `new` = `present`, all [B, H, ·, D].

    Attributes:
        past: Graph input.
        new: Of the new tokens; None where the op splits it off a packed query.
        present: Graph output.
    """

    past: ir.Value
    new: ir.Value | None
    present: ir.Value


def append_of_op(
    node: ir.Node, past_input: int, present_output: int, new_input: int | None = None
) -> Append:
    """Return the append that an attention op does itself.

    Raises:
        MismatchError: Its past is no graph input or its present no graph output.
    """
    past = node.inputs[past_input] if past_input < len(node.inputs) else None
    if past is None:
        raise MismatchError("the op has no past input: the graph was exported without a KV cache")
    new = None if new_input is None else node.inputs[new_input]
    present = node.outputs[present_output] if present_output < len(node.outputs) else None
    if present is None:
        raise MismatchError("the op has no present output")
    return _checked(Append(past, new, present))


def find_append(operand: ir.Value, side: str) -> Append:
    """Walk from an operand of the attention product back to the Concat that grows the cache.

    Args:
        operand: Keys or values of all tokens, as the product reads them.
        side: `key` or `value`, for messages.

    Raises:
        MismatchError: There is no such Concat.
    """
    value = operand
    while (node := value.producer()) is not None and node.op_type in _DATA_OPS:
        value = _data_input(node)
    node = value.producer()
    if node is None or node.op_type != "Concat":
        source = "a graph input" if node is None else f"{node.op_type} node {node.name}"
        raise MismatchError(f"{side} comes from {source}, not from a Concat with a past input")
    return _append_of_concat(node, side)


def _append_of_concat(node: ir.Node, side: str) -> Append:
    axis = node.attributes.get_int("axis", 0)
    if len(node.inputs) != 2 or axis not in (SEQUENCE_AXIS, SEQUENCE_AXIS - 4):
        raise MismatchError(
            f"{side} Concat {node.name} joins {len(node.inputs)} tensors on axis {axis}, not past "
            f"and new on axis {SEQUENCE_AXIS}"
        )
    past, new = map(present, node.inputs)
    return _checked(Append(past, new, node.outputs[0]))


def _checked(append: Append) -> Append:
    if not append.past.is_graph_input():
        raise MismatchError(f"past input is not a graph input but {append.past.name}")
    if not append.present.is_graph_output():
        raise MismatchError(f"present output {append.present.name} is not a graph output")
    return append


def _data_input(node: ir.Node) -> ir.Value:
    for value in node.inputs:
        if value is not None and value.const_value is None:
            return value
    raise MismatchError(f"{node.op_type} node {node.name} reads constants only")
