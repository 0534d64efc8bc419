"""`com.microsoft.GroupQueryAttention`: what onnxruntime-genai and ORT's fusions write.

Semantics checked against ONNX Runtime 1.32: `local_window_size` counts the query itself.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from gear_trt.export.passes.forms.cache import append_of_op, check_order
from gear_trt.export.passes.probe import Lengths, evaluate, feed_graph_inputs
from gear_trt.export.passes.sites import (
    AttentionFacts,
    HeadTensor,
    KvSite,
    MismatchError,
    Rotary,
    SearchContext,
    check_heads,
    fixed_dim,
    float_type,
    optional_input,
    present,
)

FORM = "GroupQueryAttention"

_PAST_INPUTS = (3, 4)
_PRESENT_OUTPUTS = (1, 2)
_LAST_INDEX = 5
_COS, _SIN, _POSITION_IDS = 7, 8, 9
_OTHER_INPUTS = {
    10: "attention_bias",
    11: "head_sink (attention sinks)",
    12: "k_scale",
    13: "v_scale",
    14: "q_norm_weight",
    15: "k_norm_weight",
    16: "query_seqlens",
}
_NEUTRAL_ATTRIBUTES = {
    "causal": (1,),
    "k_quant_type": ("NONE",),
    "kv_cache_bit_width": (0,),
    "qk_output": (0,),
    "sliding_window_cache": (0, 1),  # how much the old cache held; ours holds all tokens
    "smooth_softmax": (0, -1),
    "v_quant_type": ("NONE",),
}


def match(node: ir.Node, context: SearchContext) -> KvSite:
    """Return the site of a `GroupQueryAttention` node.

    Raises:
        MismatchError: The layer cannot be routed.
    """
    _check_features(node)
    _check_lengths(node, context)
    appends = [
        append_of_op(node, past_input, present_output)
        for past_input, present_output in zip(_PAST_INPUTS, _PRESENT_OUTPUTS, strict=True)
    ]
    check_order(context.graph, *appends)
    query, (key, value) = present(node.inputs[0]), node.inputs[1:3]
    return KvSite(
        form=FORM,
        node=node,
        facts=_facts(node, query, is_packed=key is None),
        query=HeadTensor(query),
        key=None if key is None else HeadTensor(key),
        value=None if value is None else HeadTensor(value),
        output=node.outputs[0],
        heads_first=False,
        dtype=float_type(query),
        caches=tuple(append.past for append in appends),
        rotary=_rotary(node),
    )


def _check_features(node: ir.Node) -> None:
    for index, name in _OTHER_INPUTS.items():
        if optional_input(node, index) is not None:
            raise MismatchError(f"input {name} is not supported")
    for name, neutral in _NEUTRAL_ATTRIBUTES.items():
        attribute = node.attributes.get(name)
        value = attribute.value if attribute is not None else neutral[0]
        if value not in neutral:
            raise MismatchError(f"attribute {name}={value} is not supported")
    position_ids = optional_input(node, _POSITION_IDS)
    if position_ids is not None and not position_ids.is_graph_input():
        raise MismatchError("position_ids is not a graph input")


def _check_lengths(node: ir.Node, context: SearchContext) -> None:
    """Refuse an op that is told of other tokens than past and new ones."""
    lengths = Lengths(batch=1, new=3, past=5)
    feeds = feed_graph_inputs(context.graph, lengths)
    (last_index_B,) = evaluate(context.graph, feeds, [present(node.inputs[_LAST_INDEX])])
    if (last_index_B != lengths.total - 1).any():
        raise MismatchError("its seqlens_k is not the count of past and new tokens, less one")


def _facts(node: ir.Node, query: ir.Value, *, is_packed: bool) -> AttentionFacts:
    num_heads = node.attributes.get_int("num_heads", 0)
    num_kv_heads = node.attributes.get_int("kv_num_heads", 0)
    heads = num_heads + 2 * num_kv_heads if is_packed else num_heads
    head_dim = fixed_dim(query, -1, "the width of the query") // max(heads, 1)
    check_heads(num_heads, num_kv_heads, head_dim)
    return AttentionFacts(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=node.attributes.get_float("scale", 0.0) or 1.0 / math.sqrt(head_dim),
        softcap=node.attributes.get_float("softcap", 0.0),
        sliding_window=max(node.attributes.get_int("local_window_size", -1), 0),
    )


def _rotary(node: ir.Node) -> Rotary | None:
    if not node.attributes.get_int("do_rotary", 0):
        return None
    cos_cache, sin_cache = optional_input(node, _COS), optional_input(node, _SIN)
    if cos_cache is None or sin_cache is None:
        raise MismatchError("do_rotary=1 without cos_cache and sin_cache")
    return Rotary(cos_cache, sin_cache, node.attributes.get_int("rotary_interleaved", 0))
