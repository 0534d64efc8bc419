"""Cuts a routed graph loose from its old cache inputs, whose shapes may still be read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from gear_trt.export.passes.nodes import integers
from gear_trt.export.passes.positions import Positions
from gear_trt.export.passes.probe import Lengths, evaluate, feed_graph_inputs
from gear_trt.export.passes.sites import MismatchError

POSITION_IDS_INPUT = "position_ids"

_TRIAL = Lengths(batch=1, new=3, past=5)


def detach_position_ids(main: ir.Graph, positions: Positions) -> None:
    """Replace the input `position_ids` by positions that the graph computes."""
    for value in main.inputs:
        rank = len(value.shape) if value.shape is not None else None
        if value.name == POSITION_IDS_INPUT and rank == 2 and value.uses():
            _replace(main, value, positions.ids)


def detach_caches(main: ir.Graph, input_ids: ir.Value, positions: Positions) -> None:
    """Replace what a graph still derives from the shapes of its old caches.

    The batch size is taken from `input_ids`, and positions that are counted from the length of the
    past from `positions`.

    Args:
        main: The graph, with every attention layer routed and without unused nodes.
        input_ids: [B, S].
        positions: Positions of the new tokens.
    """
    caches = [value for value in main.inputs if _is_cache(value)]
    for cache in caches:
        for reader in list(_batch_readers(cache)):
            reader.replace_input_with(0, input_ids)
    counted = {value: _unit_axes(main, value) for value in _descendants(caches)}
    for value, axes in counted.items():
        if axes is not None:
            _replace(main, value, _unsqueezed(main, positions.ids, axes))


def _is_cache(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 4


def _batch_readers(cache: ir.Value) -> Iterator[ir.Node]:
    """Shape nodes of which only the batch size is used."""
    for node in cache.consumers():
        if node.op_type != "Shape":
            continue
        start = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", 4)
        if (start, end) == (0, 1) or all(_gathers_first(item) for item in _readers(node)):
            yield node


def _readers(node: ir.Node) -> list[ir.Node]:
    return list(node.outputs[0].consumers())


def _gathers_first(node: ir.Node) -> bool:
    index = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] else None
    return node.op_type == "Gather" and index is not None and not index.numpy().any()


def _descendants(caches: list[ir.Value]) -> Iterator[ir.Value]:
    """Integer values that follow from the shape of a cache, in no order."""
    waiting = [node.outputs[0] for cache in caches for node in cache.consumers()]
    seen: set[ir.Value] = set()
    while waiting:
        value = waiting.pop()
        if value in seen or value.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
            continue
        seen.add(value)
        yield value
        waiting.extend(item for node in value.consumers() for item in node.outputs)


def _unit_axes(main: ir.Graph, value: ir.Value) -> list[int] | None:
    """Axes that positions [B, S] lack to have the shape of `value`; None where it holds others."""
    try:
        (array,) = evaluate(main, feed_graph_inputs(main, _TRIAL), [value])
    except MismatchError:
        return None
    expected_S = np.arange(_TRIAL.past, _TRIAL.total)
    is_row = array.ndim > 1 and array.shape[0] == 1 and np.array_equal(array.ravel(), expected_S)
    return [axis for axis in range(1, array.ndim) if array.shape[axis] == 1] if is_row else None


def _unsqueezed(main: ir.Graph, value: ir.Value, axes: list[int]) -> ir.Value:
    if not axes:
        return value
    return ir.tape.Tape(main).op("Unsqueeze", [value, integers(main, axes)])


def _replace(main: ir.Graph, value: ir.Value, replacement: ir.Value) -> None:
    """Let readers of `value` read the int64 `replacement`, in the type that they expect."""
    if value.dtype not in (None, ir.DataType.INT64):
        replacement = ir.tape.Tape(main).op("Cast", [replacement], {"to": value.dtype})
    value.replace_all_uses_with(replacement)
