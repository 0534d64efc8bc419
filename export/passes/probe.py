"""Running a piece of a graph on small tensors, to see what it computes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from gear_trt.errors import first_line
from gear_trt.export.data_file import read_chunks
from gear_trt.export.passes import microsoft
from gear_trt.export.passes.sites import MismatchError, present
from gear_trt.spec.graph import INPUT_IDS

Array = NDArray[Any]
Feeds = Mapping[ir.Value, Array]

MAX_CONSTANT = 1 << 12
"""Elements of the largest constant that is not taken for a weight."""


@dataclass(frozen=True)
class Lengths:
    """Sizes of a trial run: B sequences, S new tokens, P past tokens."""

    batch: int
    new: int
    past: int

    @property
    def total(self) -> int:
        """T, tokens after the run."""
        return self.new + self.past


def evaluate(graph: ir.Graph, feeds: Feeds, outputs: Sequence[ir.Value]) -> list[Array]:
    """Run the part of a graph that lies between `feeds` and `outputs`.

    Args:
        graph: The graph; it is not changed.
        feeds: Values at which the part begins; those that it does not need are ignored.
        outputs: Values to compute.

    Raises:
        MismatchError: The part reads something that is not fed, or an op has no known meaning.
    """
    needed = _needed(feeds, outputs)
    for value in needed:
        if value not in feeds:
            raise MismatchError(f"it depends on {value.name}, whose content is not known")
    part = ir.Model(ir.convenience.extract(graph, needed, outputs), ir_version=10)
    for constant in part.graph.initializers.values():
        if isinstance(constant.const_value, ir.ExternalTensor):
            constant.const_value = _read(constant.const_value)
    names = {_name(value): feeds[value] for value in needed}
    try:
        evaluator = ReferenceEvaluator(ir.to_proto(part), new_ops=microsoft.OPS)
        return [np.asarray(result) for result in evaluator.run(None, names)]
    except Exception as error:  # numpy raises whatever it likes on a graph that makes no sense
        raise MismatchError(f"it cannot be run on trial: {first_line(error)}") from error


def _read(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    content = b"".join(
        map(bytes, read_chunks(Path(tensor.path), tensor.offset or 0, tensor.nbytes))
    )
    array = np.frombuffer(content, tensor.dtype.numpy())
    return ir.tensor(array.reshape(tensor.shape.numpy()), dtype=tensor.dtype)


def feed_graph_inputs(graph: ir.Graph, lengths: Lengths) -> dict[ir.Value, Array]:
    """Return what a caller would feed for `lengths`, for every input with a known meaning."""
    feeds = {value: _conventional(value, lengths) for value in graph.inputs}
    feeds |= {value: _embedded(value, lengths) for value in _embeddings(graph)}
    return {value: array for value, array in feeds.items() if array is not None}


def batch_size(past: ir.Value, wanted: int) -> int:
    """B for a trial run: what is wanted, unless the graph fixes it."""
    size = past.shape[0] if past.shape is not None else None
    return size if isinstance(size, int) else wanted


def _conventional(value: ir.Value, lengths: Lengths) -> Array | None:
    if value.shape is None or value.dtype is None:
        return None
    rank, name = len(value.shape), (value.name or "").lower()
    positions_S = np.arange(lengths.past, lengths.total)
    if rank == 4 and value.dtype.is_floating_point():
        rows = value.shape[2]
        past = rows if isinstance(rows, int) and rows >= lengths.total else lengths.past
        shape = (lengths.batch, _size(value, 1), past, _size(value, 3))
        return np.zeros(shape, value.dtype.numpy())
    if value.dtype.is_floating_point() or rank not in (1, 2):
        return None
    array: Array
    if (tokens := _tokens_meant(value, lengths)) is not None:
        return np.full(lengths.batch, tokens, value.dtype.numpy())
    if "mask" in name:
        array = np.ones((lengths.batch, lengths.total))
    elif "position" in name:
        array = positions_S if rank == 1 else np.tile(positions_S, (lengths.batch, 1))
    else:
        array = np.zeros((lengths.batch, lengths.new))
    return array.astype(value.dtype.numpy()) if array.ndim == rank else None


def _tokens_meant(value: ir.Value, lengths: Lengths) -> int | None:
    """What an input [B] counts, by the op that reads it; None where it is none of these."""
    meanings = {
        ("Attention", 6): lengths.total,
        ("GroupQueryAttention", 5): lengths.total - 1,
        ("TensorScatter", 2): lengths.past,
    }
    for node, index in value.uses():
        if (node.op_type, index) in meanings:
            return meanings[node.op_type, index]
    return None


def _embeddings(graph: ir.Graph) -> Iterator[ir.Value]:
    """Rows of tables that token ids choose: sizes are read off them, and the tables are large."""
    for value in graph.inputs:
        for node in value.consumers() if value.name == INPUT_IDS else ():
            table, rows = node.inputs[0], node.outputs[0]
            if node.op_type == "Gather" and table is not None and table.const_value is not None:
                yield rows


def _embedded(rows: ir.Value, lengths: Lengths) -> Array | None:
    """[B, S, channels], as meaningless as the token ids are that a trial feeds."""
    table = present(present(rows.producer()).inputs[0]).const_value
    if table is None or len(table.shape) != 2 or not table.dtype.is_floating_point():
        return None
    shape = (lengths.batch, lengths.new, int(table.shape.numpy()[1]))
    return np.zeros(shape, table.dtype.numpy())


def _size(value: ir.Value, axis: int) -> int:
    size = present(value.shape)[axis]
    return size if isinstance(size, int) else 1


def _name(value: ir.Value) -> str:
    return present(value.name)


def reads_weights(feeds: Collection[ir.Value], outputs: Sequence[ir.Value]) -> bool:
    """Whether running a part of a graph means to run layers of the network."""
    constants = (leaf.const_value for leaf in _leaves(feeds, outputs))
    return any(tensor is not None and tensor.size > MAX_CONSTANT for tensor in constants)


def _needed(feeds: Feeds, outputs: Sequence[ir.Value]) -> list[ir.Value]:
    """Values without a producer, or fed, that `outputs` depend on."""
    return [leaf for leaf in _leaves(feeds, outputs) if leaf.const_value is None]


def _leaves(feeds: Collection[ir.Value], outputs: Sequence[ir.Value]) -> list[ir.Value]:
    """Constants, and values without a producer, or fed, that `outputs` depend on."""
    leaves: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if value in feeds or node is None or value.const_value is not None:
            leaves[value] = None
        else:
            waiting.extend(item for item in node.inputs if item is not None)
    return list(leaves)
