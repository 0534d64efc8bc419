"""Removes what routing leaves behind: double transposes, repeated work, unread nodes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet
from onnxscript.rewriter.rules.common import no_op_transpose_rule, transpose_transpose_rule

from gear_trt.export.passes.nodes import HEADS_LAST

_NORMS_WITH_OPTIONAL_OUTPUTS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")

Builder = Any
"""onnxscript's builders have every ONNX op as an attribute, which no type says."""
Pattern = Any


def simplify(model: ir.Model) -> None:
    """Simplify a routed model in place, without changing what it computes."""
    for rules in (
        [transpose_transpose_rule, no_op_transpose_rule, ROTATE_HEADS_LAST],
        [RESTORED_SHAPE],  # sees the reshapes that only the first set brings together
    ):
        RewriteRuleSet(rules).apply_to_model(model)
        common.IdentityEliminationPass()(model)
    ir.passes.Sequential(
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
    )(model)
    model.graph.sort()
    _leave_out_unread_outputs(model.graph)


def _leave_out_unread_outputs(graph: ir.Graph) -> None:
    """Take the names, which the passes have given, from outputs that are optional and not read.

    TensorRT's parser refuses these ops where they have more outputs than it computes.
    """
    for node in graph:
        if node.op_type not in _NORMS_WITH_OPTIONAL_OUTPUTS:
            continue
        for output in node.outputs[1:]:
            if not output.uses() and not output.is_graph_output():
                output.name = ""


def _rotation_between_transposes(
    op: Builder, x_BSM: Pattern, split: Pattern, cos: Pattern, sin: Pattern, merged: Pattern
) -> Pattern:
    x_BSND = op.Reshape(x_BSM, split, _outputs=["x_BSND"])
    x_BNSD = op.Transpose(x_BSND, perm=HEADS_LAST)
    rotated_BNSD = op.RotaryEmbedding(x_BNSD, cos, sin, _outputs=["rotated_BNSD"])
    return op.Reshape(op.Transpose(rotated_BNSD, perm=HEADS_LAST), merged, _outputs=["out"])


def _splits_and_merges_heads(
    context: object, x_BSM: ir.Value, x_BSND: ir.Value, out: ir.Value, **_: ir.Value
) -> MatchResult:
    del context
    result = MatchResult()
    if x_BSND.shape is None or not isinstance(x_BSND.shape[2], int):
        return result.fail("the number of heads is not known", x_BSND)
    if x_BSM.shape is None or out.shape is None or x_BSM.shape[-1] != out.shape[-1]:
        return result.fail("the last reshape does not undo the first", out)
    if len(x_BSM.shape) != 3 or len(out.shape) != 3:
        return result.fail("not between tensors of rank 3", x_BSM)
    return result


def _rotation_alone(
    op: Builder,
    x_BSM: ir.Value,
    x_BSND: ir.Value,
    cos: ir.Value,
    sin: ir.Value,
    rotated_BNSD: ir.Value,
    **_: ir.Value,
) -> Pattern:
    node, split_shape = rotated_BNSD.producer(), x_BSND.shape
    if node is None or split_shape is None:
        raise ValueError("the check comes before the rewrite")
    return op.RotaryEmbedding(
        x_BSM,
        cos,
        sin,
        num_heads=split_shape[2],
        interleaved=node.attributes.get_int("interleaved", 0),
        rotary_embedding_dim=node.attributes.get_int("rotary_embedding_dim", 0),
    )


ROTATE_HEADS_LAST = RewriteRule(
    _rotation_between_transposes,
    _rotation_alone,
    _splits_and_merges_heads,
    name="ROTATE_HEADS_LAST",
)
"""Rotates [B, S, N·D] as it is, where opset 23 has a transpose and a reshape on either side."""


def _two_reshapes(op: Builder, x: Pattern, there: Pattern, back: Pattern) -> Pattern:
    return op.Reshape(op.Reshape(x, there), back, _outputs=["out"])


def _shape_is_restored(context: object, x: ir.Value, out: ir.Value, **_: ir.Value) -> MatchResult:
    """Axes have to be the same by number or name."""
    del context
    result = MatchResult()
    if x.shape is None or out.shape is None or x.shape != out.shape:
        return result.fail(f"{x.shape} becomes {out.shape}", out)
    if any(isinstance(size, ir.SymbolicDim) and size.value is None for size in x.shape):
        return result.fail("an axis has no name", x)
    return result


def _unchanged(op: Builder, x: ir.Value, **_: ir.Value) -> Pattern:
    return op.Identity(x)


RESTORED_SHAPE = RewriteRule(_two_reshapes, _unchanged, _shape_is_restored, name="RESTORED_SHAPE")
"""Drops a reshape and a second one that undoes it."""
