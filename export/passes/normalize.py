"""Brings a foreign graph to one shape: no functions, constants as initializers, known shapes."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.quiet import quiet

MIN_OPSET = 13
"""The first opset whose Unsqueeze and Split take axes as inputs, as the passes write them."""


def normalize(model: ir.Model) -> None:
    """Normalize a model in place.

    Raises:
        GearError: `UNSUPPORTED_MODEL` for an opset that is too old.
    """
    opset = model.opset_imports.get("", MIN_OPSET)
    if opset < MIN_OPSET:
        raise GearError(
            ErrorCode.UNSUPPORTED_MODEL,
            f"the model has ONNX opset {opset}, {MIN_OPSET} or later is needed",
            hint="export it again with a newer opset, or convert it with onnx.version_converter",
        )
    ir.passes.Sequential(
        common.RemoveInitializersFromInputsPass(),
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    )(model)
    for node in model.graph:
        _drop_lone_concat(node)
    ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.NameFixPass(),
    )(model)
    for value in model.graph.inputs:
        _read_numeric_names(value)
    if any(value.shape is None for node in model.graph for value in node.outputs if value.uses()):
        with quiet("onnx_ir"):  # a failure leaves the shapes as they are, and the trials find out
            common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _drop_lone_concat(node: ir.Node) -> None:
    """TorchScript joins the past to a cache that is still empty, and then drops the empty part."""
    if node.op_type == "Concat" and len(node.inputs) == 1 and node.inputs[0] is not None:
        node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=False)


def _read_numeric_names(value: ir.Value) -> None:
    """Transformers' own exporter writes fixed dimensions as names: '64'."""
    if value.shape is not None:
        value.shape = ir.Shape(_number_of(size) for size in value.shape)


def _number_of(size: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    name = size.value if isinstance(size, ir.SymbolicDim) else None
    return int(name) if isinstance(name, str) and name.isdigit() else size
