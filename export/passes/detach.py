"""Cuts a routed graph loose from its old inputs: what is still derived from them is computed anew.

Exporters derive positions and sizes from attention masks, past lengths, shapes of caches and of
repeated heads, each in its own way. What a value is, is found out by running it: one that equals
the positions of the new tokens in every trial run is replaced by positions that the graph counts
itself; one that equals a number, the batch size or the count of new tokens is replaced by that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from gear_trt.export.passes.nodes import attention_nodes, integers, typed
from gear_trt.export.passes.positions import Positions
from gear_trt.export.passes.probe import (
    Array,
    Lengths,
    evaluate,
    feed_graph_inputs,
    reads_weights,
)
from gear_trt.export.passes.sites import HeadTensor, KvSite, MismatchError

MAX_SIZES = 8
"""Elements of a derived shape."""

_SMALL_TRIALS = (Lengths(batch=2, new=3, past=5), Lengths(batch=3, new=7, past=11))
_NEW_TOKENS_OF_LONGEST = 2
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def detach_inputs(
    main: ir.Graph,
    sites: Sequence[KvSite],
    *,
    input_ids: ir.Value,
    positions: Positions,
    max_context: int,
) -> None:
    """Replace what a routed graph still derives from its old inputs.

    Args:
        main: The graph, without unused nodes.
        sites: Its attention layers.
        input_ids: [B, S], the one old input that stays.
        positions: Positions of the new tokens.
        max_context: Longest sequence, tokens: what differs beyond small trials has to show.
    """
    old_inputs = [value for value in main.inputs if value is not input_ids]
    detacher = _Detacher(main, sites, input_ids, positions, max_context)
    opaque: set[ir.Value] = set()
    while frontier := list(_frontier(main, old_inputs, opaque)):
        local = detacher.without_network(frontier)
        detacher.replace(local)
        opaque.update(local or frontier)


def _frontier(
    main: ir.Graph, old_inputs: Sequence[ir.Value], opaque: set[ir.Value]
) -> Iterator[ir.Value]:
    """Integers that the logits depend on, nearest to them, and that old inputs decide."""
    derived = set(_descendants(old_inputs)) - opaque
    seen: set[ir.Value] = set()
    waiting = main.outputs[:1]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in derived and value.dtype in _INTEGERS:
            yield value
            continue
        node = value.producer()
        if node is not None:
            waiting.extend(item for item in node.inputs if item is not None)


def _descendants(values: Sequence[ir.Value]) -> Iterator[ir.Value]:
    waiting = list(values)
    seen: set[ir.Value] = set()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        yield value
        waiting.extend(item for node in value.consumers() for item in node.outputs)


class _Detacher:
    """Finds out what values are, and replaces them."""

    def __init__(
        self,
        main: ir.Graph,
        sites: Sequence[KvSite],
        input_ids: ir.Value,
        positions: Positions,
        max_context: int,
    ) -> None:
        self._main = main
        self._sites = sites
        self._input_ids = input_ids
        self._positions = positions
        self._outputs = [(node.outputs[0], _width(node)) for node in attention_nodes(main)]
        longest = max(max_context - _NEW_TOKENS_OF_LONGEST, 1)
        trials: tuple[Lengths, ...] = (
            *_SMALL_TRIALS,
            Lengths(batch=1, new=_NEW_TOKENS_OF_LONGEST, past=longest),
        )
        batch = input_ids.shape[0] if input_ids.shape is not None else None
        if isinstance(batch, int):
            trials = tuple(Lengths(batch, trial.new, trial.past) for trial in trials)
        self._trials = trials
        main.sort()

    def without_network(self, values: Sequence[ir.Value]) -> list[ir.Value]:
        """Those values that no layer of the network has to be run for.

        The others are sizes of activations; once earlier layers are cut loose, so are they.
        """
        feeds = self._feeds(self._trials[0])
        return [value for value in values if not reads_weights(feeds, [value])]

    def replace(self, values: Sequence[ir.Value]) -> None:
        """Let readers of each value read what it is, where that can be found out."""
        for value, arrays in zip(values, self._observed(values), strict=True):
            replacement = self._what(arrays)
            if replacement is not None:
                if value.dtype != ir.DataType.INT64:
                    replacement = self._op("Cast", [replacement], {"to": value.dtype})
                value.replace_all_uses_with(replacement)
        self._main.sort()  # a trial run cannot be cut out of a graph without order

    def _observed(self, values: Sequence[ir.Value]) -> list[Sequence[Array]]:
        """What each value was in every trial run; nothing where it cannot be run."""
        try:
            return list(zip(*(self._run(values, trial) for trial in self._trials), strict=True))
        except MismatchError:  # one of them cannot be run: look for it by halves
            if len(values) == 1:
                return [()]
            half = len(values) // 2
            return self._observed(values[:half]) + self._observed(values[half:])

    def _run(self, values: Sequence[ir.Value], trial: Lengths) -> list[Array]:
        return evaluate(self._main, self._feeds(trial), values)

    def _feeds(self, trial: Lengths) -> dict[ir.Value, Array]:
        """Old inputs, and zeros for tensors of attention layers: only their shapes matter."""
        feeds = feed_graph_inputs(self._main, trial)
        for site in self._sites:
            for tensor, heads in _tensors(site):
                feeds[tensor.tensor] = _zeros(tensor, heads, site, trial)
        for output, width in self._outputs:
            feeds[output] = np.zeros((trial.batch, trial.new, width), np.float32)
        return feeds

    def _what(self, arrays: Sequence[Array]) -> ir.Value | None:
        """Return what a value is that was `arrays` in the trial runs, None if not known."""
        return (self._positions_like(arrays) or self._sizes_like(arrays)) if arrays else None

    def _positions_like(self, arrays: Sequence[Array]) -> ir.Value | None:
        """Positions plus a constant, with axes of size 1 as the arrays have them."""
        offset: int | None = None
        for array, trial in zip(arrays, self._trials, strict=True):
            expected_S = np.arange(trial.past, trial.total)
            if array.ndim < 2 or array.shape[0] not in (1, trial.batch):
                return None
            if array.size != array.shape[0] * trial.new:
                return None
            offsets = np.unique(array.reshape(-1, trial.new) - expected_S)
            if offsets.size != 1 or offset not in (None, int(offsets[0])):
                return None
            offset = int(offsets[0])
        unit_axes = [axis for axis in range(1, arrays[0].ndim) if arrays[0].shape[axis] == 1]
        ids = self._positions.ids
        if unit_axes:
            ids = self._op("Unsqueeze", [ids, integers(self._main, unit_axes)])
        return self._op("Add", [ids, integers(self._main, offset)]) if offset else ids

    def _sizes_like(self, arrays: Sequence[Array]) -> ir.Value | None:
        """A number or a short list of numbers, each a constant, B or S."""
        if arrays[0].ndim > 1 or not 0 < arrays[0].size <= MAX_SIZES:
            return None
        if any(array.shape != arrays[0].shape for array in arrays):
            return None
        columns = np.stack([array.reshape(-1) for array in arrays], axis=1)
        parts = [self._size(column) for column in columns]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        joined = known[0] if len(known) == 1 else self._op("Concat", known, {"axis": 0})
        return joined if arrays[0].ndim else self._op("Squeeze", [joined])

    def _size(self, found: Array) -> ir.Value | None:
        """What a number is that was `found` in the trial runs, as [1]."""
        if (found == found[0]).all():
            return integers(self._main, [int(found[0])])
        meanings = [(trial.batch, trial.new) for trial in self._trials]
        for axis, sizes in enumerate(zip(*meanings, strict=True)):
            if np.array_equal(found, sizes):
                return self._op("Shape", [self._input_ids], {"start": axis, "end": axis + 1})
        return None

    def _op(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        output = ir.tape.Tape(self._main).op(op_type, inputs, attributes or {})
        return typed(output, ir.DataType.INT64, None)


def _width(node: ir.Node) -> int:
    """Channels of the output of a `GearAttention` node, all heads together."""
    return node.attributes.get_int("num_heads", 0) * node.attributes.get_int("head_dim", 0)


def _tensors(site: KvSite) -> Iterator[tuple[HeadTensor, int]]:
    """Queries, keys and values of a layer, and how many heads they have."""
    facts = site.facts
    is_packed = site.key is None
    yield site.query, facts.num_heads + (2 * facts.num_kv_heads if is_packed else 0)
    for tensor in (site.key, site.value):
        if tensor is not None:
            yield tensor, facts.num_kv_heads


def _zeros(tensor: HeadTensor, heads: int, site: KvSite, trial: Lengths) -> Array:
    shape = (trial.batch, heads, trial.new, site.facts.head_dim)
    return tensor.laid_out(np.zeros(shape, site.dtype.numpy()))
