"""`Attention` of ONNX opset 23 and later, with its past inside the op or added to before it."""

from __future__ import annotations

import math

import onnx_ir as ir

from gear_trt.export.passes.forms.cache import append_of_op, find_append
from gear_trt.export.passes.forms.trial import (
    Operands,
    ShownByOp,
    Trial,
    all_visible,
    guarded,
    masked_window,
    visible,
)
from gear_trt.export.passes.nodes import HEADS_FIRST
from gear_trt.export.passes.sites import (
    AttentionFacts,
    HeadTensor,
    KvSite,
    MismatchError,
    SearchContext,
    check_heads,
    fixed_dim,
    optional_input,
    present,
)

FORM = "Attention"

_MASK, _PAST_KEY, _PAST_VALUE = 3, 4, 5


def match(node: ir.Node, context: SearchContext) -> KvSite:
    """Return the site of an `Attention` node.

    Raises:
        MismatchError: The layer cannot be routed.
    """
    operands = _operands(node)
    heads = _heads(node, operands)
    check_heads(*heads)
    window = _sliding_window(node, operands, heads, context)
    facts = _facts(node, heads, window)
    output = guarded(node.outputs[0])
    Trial(context, operands, heads).check(output, facts)
    return KvSite(
        form=FORM,
        node=node,
        facts=facts,
        query=operands.query,
        key=operands.key.new,
        value=operands.value.new,
        output=output,
        heads_first=operands.heads_first,
        dtype=operands.dtype,
        caches=operands.caches,
        capacity=operands.key.capacity,
    )


def _operands(node: ir.Node) -> Operands:
    query, key, value = map(present, node.inputs[:3])
    if len(node.outputs) > 3 and node.outputs[3].uses():
        raise MismatchError("its scores are read (output qk_matmul_output)")
    perm = HEADS_FIRST if query.shape is None or len(query.shape) == 4 else None
    if optional_input(node, _PAST_KEY) is not None:
        appends = (
            append_of_op(node, _PAST_KEY, 1, HeadTensor(key, perm)),
            append_of_op(node, _PAST_VALUE, 2, HeadTensor(value, perm)),
        )
    else:
        appends = find_append(key, "key"), find_append(value, "value")
    return Operands(HeadTensor(query, perm), *appends)


def _heads(node: ir.Node, operands: Operands) -> tuple[int, int, int]:
    if operands.heads_first:
        query = operands.query.tensor
        return (
            fixed_dim(query, 1, "the number of query heads"),
            fixed_dim(operands.key.past, 1, "the number of KV heads"),
            fixed_dim(query, 3, "head_dim"),
        )
    num_heads = node.attributes.get_int("q_num_heads", 0)
    width = fixed_dim(operands.query.tensor, 2, "the width of the query")
    return num_heads, node.attributes.get_int("kv_num_heads", 0), width // max(num_heads, 1)


def _sliding_window(
    node: ir.Node, operands: Operands, heads: tuple[int, int, int], context: SearchContext
) -> int:
    mask = optional_input(node, _MASK)
    shown_ST = _shown_by(node)
    if mask is None and shown_ST is all_visible:
        raise MismatchError("it has no mask and is not causal")
    return masked_window(context, operands, heads, mask, shown_ST)


def _shown_by(node: ir.Node) -> ShownByOp:
    """What the op shows by its attributes; windows came with opset 25."""
    left = node.attributes.get_int("left_window_size", -1)
    right = node.attributes.get_int("right_window_size", -1)
    if node.attributes.get_int("is_causal", 0) or right == 0:
        return lambda lengths: visible(lengths, left + 1)
    if left < 0 and right < 0:
        return all_visible
    raise MismatchError(f"its window shows {left} earlier and {right} later tokens: not causal")


def _facts(node: ir.Node, heads: tuple[int, int, int], sliding_window: int) -> AttentionFacts:
    num_heads, num_kv_heads, head_dim = heads
    return AttentionFacts(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=node.attributes.get_float("scale", 1.0 / math.sqrt(head_dim)),
        softcap=node.attributes.get_float("softcap", 0.0),
        sliding_window=sliding_window,
    )
