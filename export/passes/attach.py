"""Gives a routed graph the inputs and outputs that the runtime knows (`spec.graph`)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.passes.detach import detach_inputs
from gear_trt.export.passes.interface import LayerState, SharedInputs
from gear_trt.export.passes.positions import Positions
from gear_trt.export.passes.sites import KvSite
from gear_trt.spec import DOMAIN, graph, layout_hash
from gear_trt.spec.ops import LAYOUT_HASH_KEY, OPSET_VERSION

MICROSOFT_OPSET = 1


def token_input(main: ir.Graph) -> ir.Value:
    """Return `input_ids`, made [B, S] int64 where it has another integer type.

    Raises:
        GearError: `UNSUPPORTED_MODEL` where there is none, or its length is fixed.
    """
    found = next((value for value in main.inputs if value.name == graph.INPUT_IDS), None)
    if found is None or found.shape is None or len(found.shape) != 2:
        raise GearError(
            ErrorCode.UNSUPPORTED_MODEL,
            f"the model has no input {graph.INPUT_IDS} of shape [batch, tokens]",
            hint="export the model with token ids as input; its inputs are "
            + ", ".join(str(value.name) for value in main.inputs),
        )
    if isinstance(found.shape[1], int):
        raise GearError(
            ErrorCode.UNSUPPORTED_MODEL,
            f"the model takes exactly {found.shape[1]} tokens per call",
            hint=f"export it with a dynamic second axis of {graph.INPUT_IDS}",
        )
    return found if found.dtype == ir.DataType.INT64 else _widened(main, found)


def attach(
    model: ir.Model,
    states: Sequence[LayerState],
    shared: SharedInputs,
    *,
    sites: Sequence[KvSite],
    input_ids: ir.Value,
    positions: Positions,
    max_context: int,
) -> None:
    """Replace a routed graph's interface in place; whatever only the old one needed goes.

    Args:
        model: The model, with every attention layer routed.
        states: State of every layer, in order.
        shared: Inputs that every layer reads.
        sites: The layers.
        input_ids: [B, S] int64.
        positions: Positions of the new tokens.
        max_context: Longest sequence, tokens.

    Raises:
        GearError: `UNSUPPORTED_MODEL` where the graph has no logits, or still needs an input that
            the runtime cannot supply.
    """
    main = model.graph
    logits = _logits(main)
    main.outputs[:] = [
        logits,
        *(state.page_pool_out for state in states),
        *(state.residual_buffer_out for state in states),
    ]
    common.RemoveUnusedNodesPass()(model)
    detach_inputs(main, sites, input_ids=input_ids, positions=positions, max_context=max_context)
    common.RemoveUnusedNodesPass()(model)
    main.sort()
    _refuse_left_over(main, input_ids)
    main.inputs[:] = [
        input_ids,
        shared.past_lengths,
        shared.new_lengths,
        shared.slots,
        shared.page_table,
        *(state.page_pool for state in states),
        *(state.residual_buffer for state in states),
    ]
    _name_axes(main, input_ids)
    _name_tensors(model, logits, input_ids)
    model.opset_imports.update({DOMAIN: OPSET_VERSION, "com.microsoft": MICROSOFT_OPSET})
    model.metadata_props[LAYOUT_HASH_KEY] = layout_hash()


def _widened(main: ir.Graph, narrow: ir.Value) -> ir.Value:
    wide = ir.val(graph.INPUT_IDS, ir.DataType.INT64, narrow.shape)
    narrow.name = f"{graph.INPUT_IDS}.narrow"
    cast = ir.tape.Tape(main).op("Cast", [wide], {"to": narrow.dtype or ir.DataType.INT32})
    narrow.replace_all_uses_with(cast)
    main.inputs[main.inputs.index(narrow)] = wide
    main.sort()
    return wide


def _logits(main: ir.Graph) -> ir.Value:
    candidates = [
        value for value in main.outputs if value.shape is not None and len(value.shape) == 3
    ]
    named = [value for value in candidates if value.name == graph.LOGITS]
    if len(named or candidates) != 1:
        raise GearError(
            ErrorCode.UNSUPPORTED_MODEL,
            f"the model has no output {graph.LOGITS} of shape [batch, tokens, vocabulary]",
            hint="export the model with its language model head; its outputs are "
            + ", ".join(str(value.name) for value in main.outputs),
        )
    return (named or candidates)[0]


def _refuse_left_over(main: ir.Graph, input_ids: ir.Value) -> None:
    for value in main.inputs:
        readers = list(value.consumers())
        if value is not input_ids and readers:
            raise GearError(
                ErrorCode.UNSUPPORTED_MODEL,
                f"the model still needs its input {value.name}, which the runtime cannot supply",
                detail=f"node {readers[0].name} ({readers[0].op_type}) reads it",
                hint="export the model with position_ids as an input and a plain causal mask",
            )


def _name_axes(main: ir.Graph, input_ids: ir.Value) -> None:
    """Call the batch axis B and the axis of new tokens S, everywhere."""
    names = dict(zip(input_ids.shape or (), ("B", "S"), strict=True))

    def renamed(size: int | ir.SymbolicDim) -> int | str | ir.SymbolicDim:
        return size if isinstance(size, int) or size.value is None else names.get(size, size)

    for value in (*main.inputs, *(value for node in main for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape(map(renamed, value.shape))


def _name_tensors(model: ir.Model, logits: ir.Value, input_ids: ir.Value) -> None:
    """Give the interface its names; an inner tensor that has one of them gets another."""
    interface = {*model.graph.inputs, *model.graph.outputs}
    names = {value.name for value in interface} | {graph.LOGITS, graph.INPUT_IDS}
    inner = [value for node in model.graph for value in node.outputs]
    for value in (*inner, *model.graph.initializers.values()):
        if value not in interface and value.name in names:
            value.name = f"{value.name}.inner"
    logits.name, input_ids.name = graph.LOGITS, graph.INPUT_IDS
    common.NameFixPass()(model)
