"""Cleans up what torch.onnx writes, in about a second.

torch's own optimizer runs all of onnxscript's rules, twice, and takes longer than the export of a
30-layer model; a decoder needs constant folding, two rules and two fusions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
    optimizer.fold_constants(model, should_fold=_unless_weight_transpose)
    _transpose_weights_lazily(model.graph)
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


def _unless_weight_transpose(node: ir.Node) -> bool | None:
    return False if node.op_type == "Transpose" else None


def _transpose_weights_lazily(main: ir.Graph) -> None:
    """Turn weights as they are written, one at a time; folding would hold all of them twice.

    A weight with other readers (a tied embedding) keeps its node, and one copy in the file.
    """
    for node in main:
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or weight.const_value is None or len(weight.uses()) > 1:
            continue
        perm = node.attributes.get_ints("perm", ())
        turned = _turned(f"{weight.name}.transposed", weight.const_value, perm)
        main.register_initializer(turned)
        node.outputs[0].replace_all_uses_with(turned)


def _turned(name: str, tensor: ir.TensorProtocol, perm: Sequence[int]) -> ir.Value:
    def turn() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy().transpose(perm)), dtype=tensor.dtype)

    sizes = tensor.shape.numpy()
    shape = ir.Shape([sizes[axis] for axis in perm])
    lazy = ir.LazyTensor(turn, dtype=tensor.dtype, shape=shape, name=name)
    return ir.val(name, tensor.dtype, shape, const_value=lazy)


def _unify_types(main: ir.Graph, node: ir.Node) -> None:
    """Normalize in the type of the scale: the fusion drops a cast, and no runtime mixes types."""
    values, scale = node.inputs
    if values is None or scale is None or scale.dtype in (None, values.dtype):
        return
    cast = ir.node("Cast", [values], {"to": scale.dtype})
    main.insert_before(node, cast)
    node.replace_input_with(0, cast.outputs[0])
