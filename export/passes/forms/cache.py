"""Where a graph adds new keys or values to its past: from graph input to graph output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gear_trt.export.passes.nodes import HEADS_FIRST
from gear_trt.export.passes.sites import HeadTensor, MismatchError, optional_input, present

SEQUENCE_AXIS = 2
"""Of past keys and values: [B, H, T, D]."""

_DATA_OPS = frozenset(
    {"Cast", "Div", "Expand", "Identity", "Mul", "Reshape", "Slice", "Transpose", "Unsqueeze"}
)
"""Ops between the grown cache and the attention product; the cache is their first input that is
no constant. What they compute together is checked by running them (`probe`)."""
_LAYOUT_OPS = frozenset({"Identity", "Transpose"})
_SCATTERS = {"ScatterElements": 2, "ScatterND": 2, "TensorScatter": 1}
"""Ops that write into a cache of full length, and which input is what they write."""


@dataclass(frozen=True)
class Append:
    """Keys or values of one layer: `past` with `new` at its end is `present`.

    Attributes:
        past: Graph input [B, H, P, D], or [B, H, capacity, D] where `is_fixed`.
        new: Of the new tokens; None where the op splits it off a packed query.
        present: Graph output.
        is_fixed: Whether tokens are written into a cache of full length, not joined to it.
    """

    past: ir.Value
    new: HeadTensor | None
    present: ir.Value
    is_fixed: bool = False

    @property
    def capacity(self) -> int | None:
        """Tokens that a cache of full length holds; None where nothing limits it."""
        size = self.past.shape[SEQUENCE_AXIS] if self.is_fixed and self.past.shape else None
        return size if isinstance(size, int) else None


def append_of_op(
    node: ir.Node, past_input: int, present_output: int, new: HeadTensor | None = None
) -> Append:
    """Return the append that an attention op does itself.

    Raises:
        MismatchError: Its past is no graph input or its present no graph output.
    """
    past = optional_input(node, past_input)
    if past is None:
        raise MismatchError("the op has no past input: the graph was exported without a KV cache")
    present = node.outputs[present_output] if present_output < len(node.outputs) else None
    if present is None:
        raise MismatchError("the op has no present output")
    return _checked(Append(past, new, present))


def check_order(graph: ir.Graph, key: Append, value: Append) -> None:
    """Refuse a layer whose keys would come back as its values.

    Args:
        graph: Whose inputs and outputs the caller pairs by their order.
        key: Of the layer.
        value: Of the same layer.

    Raises:
        MismatchError: Its past and present are not in the same order.
    """
    pasts, presents = list(graph.inputs), list(graph.outputs)
    key_is_first_past = pasts.index(key.past) < pasts.index(value.past)
    key_is_first_present = presents.index(key.present) < presents.index(value.present)
    if key_is_first_past != key_is_first_present:
        raise MismatchError(
            f"its inputs {key.past.name}, {value.past.name} and outputs {key.present.name}, "
            f"{value.present.name} are not in the same order"
        )


def find_append(operand: ir.Value, side: str) -> Append:
    """Walk from an operand of the attention product back to where the cache gets new tokens.

    Args:
        operand: Keys or values of all tokens, as the product reads them.
        side: `key` or `value`, for messages.

    Raises:
        MismatchError: There is no such place.
    """
    value = operand
    while (node := value.producer()) is not None and node.op_type in _DATA_OPS:
        value = _data_input(node)
    node = value.producer()
    if node is None:
        raise MismatchError(
            f"{side} is graph input {value.name} alone, to which no new tokens are added "
            "(cross-attention)"
        )
    if node.op_type == "Concat":
        return _append_of_concat(node, side)
    if node.op_type in _SCATTERS:
        return _append_of_scatter(node)
    raise MismatchError(
        f"{side} comes from {node.op_type} node {node.name}, not from a Concat with a past input"
    )


def _append_of_concat(node: ir.Node, side: str) -> Append:
    axis = node.attributes.get_int("axis", 0)
    if len(node.inputs) != 2 or axis not in (SEQUENCE_AXIS, SEQUENCE_AXIS - 4):
        raise MismatchError(
            f"{side} Concat {node.name} joins {len(node.inputs)} tensors on axis {axis}, not past "
            f"and new on axis {SEQUENCE_AXIS}"
        )
    past, new = map(present, node.inputs)
    return _checked(Append(past, HeadTensor(new, HEADS_FIRST), node.outputs[0]))


def _append_of_scatter(node: ir.Node) -> Append:
    if node.attributes.get_string("mode", "linear") != "linear":
        raise MismatchError(f"{node.op_type} node {node.name} writes in a circle: mode=circular")
    past, perm = present(node.inputs[0]), HEADS_FIRST
    while (producer := past.producer()) is not None and producer.op_type in _LAYOUT_OPS:
        perm = _composed(producer.attributes.get_ints("perm", HEADS_FIRST), perm)
        past = present(producer.inputs[0])
    new = present(node.inputs[_SCATTERS[node.op_type]])
    written = next(
        (value for value in _same_content(node.outputs[0]) if value.is_graph_output()),
        node.outputs[0],
    )
    return _checked(Append(past, HeadTensor(new, perm), written, is_fixed=True))


def _composed(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """Permutation that does `first` and then `second`."""
    return tuple(first[axis] for axis in second)


def _same_content(value: ir.Value) -> Iterator[ir.Value]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        yield value
        waiting.extend(node.outputs[0] for node in value.consumers() if node.op_type in _LAYOUT_OPS)


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
