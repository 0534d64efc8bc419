"""Finds every attention layer, by the node it ends in; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.passes.claims import check_claims
from gear_trt.export.passes.forms import decomposed, group_query, multi_head, standard, symbolic
from gear_trt.export.passes.sites import (
    SYMBOLIC_OP,
    KvSite,
    Matcher,
    MismatchError,
    NearMiss,
    SearchContext,
)
from gear_trt.spec import DOMAIN

SHOWN_MISSES = 3
"""Near misses that an error lists; layers mostly fail alike."""

_FORMS: dict[tuple[str, str], tuple[str, Matcher]] = {
    (DOMAIN, SYMBOLIC_OP): (symbolic.FORM, symbolic.match),
    ("com.microsoft", "GroupQueryAttention"): (group_query.FORM, group_query.match),
    ("com.microsoft", "MultiHeadAttention"): (multi_head.FORM, multi_head.match),
    ("", "Attention"): (standard.FORM, standard.match),
    ("", "Softmax"): (decomposed.FORM, decomposed.match),
}
_UNKNOWN_FORMS = {
    ("", "LinearAttention"): "its state is not a KV cache",
    ("com.microsoft", "Attention"): "it packs past keys and values into one tensor",
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): "it is for one new token at a time",
    ("com.microsoft", "PagedAttention"): "it has paged caches of its own",
    ("com.microsoft", "SparseAttention"): "it skips blocks of tokens",
}


def find_kv(context: SearchContext) -> list[KvSite | NearMiss]:
    """Return the attention layers of a graph in the order in which they run.

    The place in the list is the layer's index.
    """
    found = (_look_at(node, context) for node in context.graph)
    return check_claims(context.graph, [item for item in found if item is not None])


def _look_at(node: ir.Node, context: SearchContext) -> KvSite | NearMiss | None:
    operator = (node.domain, node.op_type)
    if operator in _UNKNOWN_FORMS:
        reason = f"{node.op_type} nodes are not supported: {_UNKNOWN_FORMS[operator]}"
        return NearMiss(node.op_type, node, reason)
    if operator not in _FORMS:
        return None
    form, match = _FORMS[operator]
    try:
        return match(node, context)
    except MismatchError as error:
        return NearMiss(form, node, str(error))


def no_kv_cache(found: Sequence[KvSite | NearMiss]) -> GearError:
    """Return the error for a model of which not every layer can be routed."""
    misses = [
        f"closest: layer {layer}, node {item.node.name}: check failed: {item.reason}"
        for layer, item in enumerate(found)
        if isinstance(item, NearMiss)
    ]
    message = f"{len(found) - len(misses)} of {len(found)} attention layers can be routed"
    return GearError(
        ErrorCode.NO_KV_CACHE,
        message if found else "the model has no attention layer that gear_trt knows",
        detail="\n".join(misses[:SHOWN_MISSES]) or None,
        hint="export the model with a KV cache (inputs past_key_values.*, outputs present.*) and "
        "without control flow, or pass its Hugging Face folder; --dry-run shows every layer",
    )
