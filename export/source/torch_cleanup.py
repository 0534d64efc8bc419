"""Cleans up what torch.onnx writes, in about a second.

torch's own optimizer runs all of onnxscript's rules, twice, and takes longer than the export of a
30-layer model; a decoder needs constant folding, two rules and two fusions.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import RewriteRuleSet, onnx_fusions
from onnxscript.rewriter.rules.common import mul_by_1_rule, squeeze_reshape_1d_rule

_UNFUSED_ROTATION = RewriteRuleSet([mul_by_1_rule, squeeze_reshape_1d_rule])
"""Cosines are multiplied by an attention factor of 1, which hides them from the fusion."""


def clean_up(model: ir.Model) -> None:
    """Fold constants and fuse RMSNormalization and RotaryEmbedding, in place."""
    common.InlinePass()(model)
    optimizer.fold_constants(model)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    )(model)
    _UNFUSED_ROTATION.apply_to_model(model)
    common.IdentityEliminationPass()(model)
    onnx_fusions.fuse(model)
    for node in model.graph:
        if node.op_type == "RMSNormalization":
            _unify_types(model.graph, node)
    common.RemoveUnusedNodesPass()(model)


def _unify_types(main: ir.Graph, node: ir.Node) -> None:
    """Normalize in the type of the scale: the fusion drops a cast, and no runtime mixes types."""
    values, scale = node.inputs
    if values is None or scale is None or scale.dtype in (None, values.dtype):
        return
    cast = ir.node("Cast", [values], {"to": scale.dtype})
    main.insert_before(node, cast)
    node.replace_input_with(0, cast.outputs[0])
