"""`Attention` of ONNX opset 23 and later, with its past inside the op or in a Concat before it."""

from __future__ import annotations

import math

import onnx_ir as ir

from gear_trt.export.passes.forms.cache import Append, append_of_op, find_append
from gear_trt.export.passes.forms.trial import (
    Operands,
    Trial,
    guarded,
    longest_lengths,
    sliding_window_of,
    visible,
)
from gear_trt.export.passes.probe import evaluate, feed_graph_inputs
from gear_trt.export.passes.sites import (
    AttentionFacts,
    KvSite,
    MismatchError,
    SearchContext,
    check_heads,
    fixed_dim,
    present,
)

FORM = "Attention"

_MASK, _PAST_KEY, _PAST_VALUE, _NONPAD_LENGTHS = 3, 4, 5, 6


def match(node: ir.Node, context: SearchContext) -> KvSite:
    """Return the site of an `Attention` node.

    Raises:
        MismatchError: The layer cannot be routed.
    """
    operands = _operands(node)
    heads = _heads(node, operands)
    check_heads(*heads)
    window = _sliding_window(node, operands.key, context)
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
    )


def _operands(node: ir.Node) -> Operands:
    query, key, value = map(present, node.inputs[:3])
    if _input(node, _NONPAD_LENGTHS) is not None:
        raise MismatchError("input nonpad_kv_seqlen (a cache of fixed capacity) is not supported")
    if len(node.outputs) > 3 and node.outputs[3].uses():
        raise MismatchError("its scores are read (output qk_matmul_output)")
    if _input(node, _PAST_KEY) is not None:
        appends = append_of_op(node, _PAST_KEY, 1, 1), append_of_op(node, _PAST_VALUE, 2, 2)
    else:
        appends = find_append(key, "key"), find_append(value, "value")
    return Operands(query, *appends, heads_first=query.shape is None or len(query.shape) == 4)


def _heads(node: ir.Node, operands: Operands) -> tuple[int, int, int]:
    if operands.heads_first:
        query = operands.query
        return (
            fixed_dim(query, 1, "the number of query heads"),
            fixed_dim(operands.key.past, 1, "the number of KV heads"),
            fixed_dim(query, 3, "head_dim"),
        )
    num_heads = node.attributes.get_int("q_num_heads", 0)
    width = fixed_dim(operands.query, 2, "the width of the query")
    return num_heads, node.attributes.get_int("kv_num_heads", 0), width // max(num_heads, 1)


def _sliding_window(node: ir.Node, key: Append, context: SearchContext) -> int:
    mask = _input(node, _MASK)
    is_causal = bool(node.attributes.get_int("is_causal", 0))
    if mask is None:
        if not is_causal:
            raise MismatchError("it has no mask and is not causal")
        return 0
    lengths = longest_lengths(context, key.past)
    (bias,) = evaluate(context.graph, feed_graph_inputs(context.graph, lengths), [mask])
    if is_causal and bias.dtype == bool:
        bias = bias & visible(lengths, sliding_window=0)
    return sliding_window_of(bias, lengths)


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


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
