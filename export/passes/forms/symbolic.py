"""The node that our own exporter leaves for every attention layer."""

from __future__ import annotations

import onnx_ir as ir

from gear_trt.export.passes.sites import (
    AttentionFacts,
    HeadTensor,
    KvSite,
    SearchContext,
    check_heads,
    float_type,
    present,
)

FORM = "transformers"


def match(node: ir.Node, context: SearchContext) -> KvSite:
    """Return the site of an `UnroutedAttention` node.

    Raises:
        MismatchError: The layer cannot be routed.
    """
    del context
    query_BSM, key_BSM, value_BSM = map(present, node.inputs)
    attributes = node.attributes
    facts = AttentionFacts(
        num_heads=attributes.get_int("num_heads", 0),
        num_kv_heads=attributes.get_int("num_kv_heads", 0),
        head_dim=attributes.get_int("head_dim", 0),
        scale=attributes.get_float("scale", 0.0),
        softcap=attributes.get_float("softcap", 0.0),
        sliding_window=attributes.get_int("sliding_window", 0),
    )
    check_heads(facts.num_heads, facts.num_kv_heads, facts.head_dim)
    return KvSite(
        form=FORM,
        node=node,
        facts=facts,
        query=HeadTensor(query_BSM),
        key=HeadTensor(key_BSM),
        value=HeadTensor(value_BSM),
        output=node.outputs[0],
        heads_first=False,
        dtype=float_type(query_BSM),
    )
