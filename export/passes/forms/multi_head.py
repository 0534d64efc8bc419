"""`com.microsoft.MultiHeadAttention`: what onnxruntime-genai writes where it has no grouped op.

As many key heads as query heads; with fewer, the graph repeats them before the op, and the cache
grows in a Concat before that.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from gear_trt.export.passes.forms.cache import append_of_op, find_append
from gear_trt.export.passes.forms.trial import (
    Operands,
    Trial,
    all_visible,
    causal,
    masked_window,
)
from gear_trt.export.passes.sites import (
    AttentionFacts,
    HeadTensor,
    KvSite,
    MismatchError,
    SearchContext,
    check_heads,
    fixed_dim,
    optional_input,
)

FORM = "MultiHeadAttention"

_KEY, _VALUE, _BIAS, _MASK, _PAST_KEY, _PAST_VALUE = 1, 2, 3, 5, 6, 7
_OTHER_INPUTS = {
    _BIAS: "bias (of query, key and value)",
    8: "past_sequence_length (a shared buffer)",
    9: "cache_indirection (beam search)",
}


def match(node: ir.Node, context: SearchContext) -> KvSite:
    """Return the site of a `MultiHeadAttention` node.

    Raises:
        MismatchError: The layer cannot be routed.
    """
    for index, name in _OTHER_INPUTS.items():
        if optional_input(node, index) is not None:
            raise MismatchError(f"input {name} is not supported")
    if len(node.outputs) > 3 and node.outputs[3].uses():
        raise MismatchError("its scores are read (output qk)")
    operands = _operands(node)
    heads = _heads(node, operands)
    check_heads(*heads)
    facts = AttentionFacts(
        *heads,
        scale=node.attributes.get_float("scale", 0.0) or 1.0 / math.sqrt(heads[2]),
        sliding_window=_sliding_window(node, operands, heads, context),
    )
    Trial(context, operands, heads).check(node.outputs[0], facts)
    return KvSite(
        form=FORM,
        node=node,
        facts=facts,
        query=operands.query,
        key=operands.key.new,
        value=operands.value.new,
        output=node.outputs[0],
        heads_first=False,
        dtype=operands.dtype,
        caches=operands.caches,
        capacity=operands.key.capacity,
    )


def _operands(node: ir.Node) -> Operands:
    query, key, value = (optional_input(node, index) for index in (0, _KEY, _VALUE))
    if query is None or key is None or value is None:
        raise MismatchError("it packs queries, keys and values into one input")
    if optional_input(node, _PAST_KEY) is not None:
        appends = (
            append_of_op(node, _PAST_KEY, 1, HeadTensor(key)),
            append_of_op(node, _PAST_VALUE, 2, HeadTensor(value)),
        )
    else:
        appends = find_append(key, "key"), find_append(value, "value")
    return Operands(HeadTensor(query), *appends)


def _heads(node: ir.Node, operands: Operands) -> tuple[int, int, int]:
    num_heads = node.attributes.get_int("num_heads", 0)
    num_kv_heads = fixed_dim(operands.key.past, 1, "the number of KV heads")
    width = fixed_dim(operands.query.tensor, 2, "the width of the query")
    return num_heads, num_kv_heads, width // max(num_heads, 1)


def _sliding_window(
    node: ir.Node, operands: Operands, heads: tuple[int, int, int], context: SearchContext
) -> int:
    is_causal = node.attributes.get_int("unidirectional", 0)
    mask = optional_input(node, _MASK)
    if mask is None and not is_causal:
        raise MismatchError("it has no mask and is not causal")
    return masked_window(context, operands, heads, mask, causal if is_causal else all_visible)
