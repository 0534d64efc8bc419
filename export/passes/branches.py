"""Resolves `If` nodes of which a cached decoder always takes the same branch.

Merged decoders hold the model twice, with and without a past, behind a flag that the caller feeds;
a cache needs the branch that reads it. Other conditions (one rotary table for short texts, another
for long ones) follow from lengths: they are run, for the shortest and the longest text.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from gear_trt.export.passes.probe import Lengths, evaluate, feed_graph_inputs
from gear_trt.export.passes.sites import MismatchError, present

THEN, ELSE = "then_branch", "else_branch"


def resolve_branches(model: ir.Model, max_context: int) -> None:
    """Put the branch that is taken in the place of every `If` node, where one always is.

    Args:
        model: The model, changed in place.
        max_context: Longest sequence, tokens.
    """
    main = model.graph
    for node in list(main):
        if node.op_type != "If" or not {THEN, ELSE} <= node.attributes.keys():
            continue
        branch = _branch_with_cache(main, node) or _branch_by_lengths(main, node, max_context)
        if branch is not None:
            _inline(main, node, node.attributes[branch].as_graph())
            _disconnect(node.attributes[ELSE if branch == THEN else THEN].as_graph())


def _branch_with_cache(main: ir.Graph, node: ir.Node) -> str | None:
    """The branch that reads caches, where a flag of the caller chooses and the other has none."""
    if not present(node.inputs[0]).is_graph_input():
        return None
    caches = {value for value in main.inputs if value.shape is not None and len(value.shape) == 4}
    reading = [
        branch
        for branch in (THEN, ELSE)
        if any(value in caches for value in _read_by(node.attributes[branch].as_graph()))
    ]
    return reading[0] if len(reading) == 1 else None


def _read_by(graph: ir.Graph) -> Iterator[ir.Value | None]:
    for node in graph:
        yield from node.inputs


def _branch_by_lengths(main: ir.Graph, node: ir.Node, max_context: int) -> str | None:
    """The branch that the shortest and the longest text take, None where they differ."""
    condition = present(node.inputs[0])
    longest = Lengths(batch=1, new=2, past=max(max_context - 2, 0))
    try:
        taken = {
            bool(evaluate(main, feed_graph_inputs(main, lengths), [condition])[0].all())
            for lengths in (Lengths(batch=1, new=1, past=0), longest)
        }
    except MismatchError:
        return None
    return (THEN if taken.pop() else ELSE) if len(taken) == 1 else None


def _inline(main: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    """Move a branch's nodes and weights into the main graph; names are mended by `normalize`."""
    results = list(branch.outputs)
    for value in list(branch.initializers.values()):
        branch.initializers.pop(present(value.name))
        if value.name in main.initializers:
            value.name = f"{node.name}.{value.name}"
        main.register_initializer(value)
    inner = list(branch)
    branch.outputs.clear()
    branch.remove(inner)
    main.insert_before(node, inner)
    for old, new in zip(node.outputs, results, strict=True):
        old.name, new.name = None, old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    main.remove(node, safe=True)


def _disconnect(branch: ir.Graph) -> None:
    """Let nodes that never run read nothing: values of the main graph count their readers."""
    for node in ir.traversal.RecursiveGraphIterator(branch):
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
