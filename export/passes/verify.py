"""What must hold of a rewritten model, whatever it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.passes.nodes import attention_nodes
from gear_trt.export.passes.sites import SYMBOLIC_OP
from gear_trt.export.passes.weights import WeightGuard
from gear_trt.spec import GEAR_ATTENTION, graph, layout_hash
from gear_trt.spec.ops import LAYOUT_HASH_KEY


def verify(model: ir.Model, layers: int, weights: WeightGuard) -> None:
    """Check a rewritten model.

    Args:
        model: The model.
        layers: Attention layers that it has to have.
        weights: What nodes read before.

    Raises:
        GearError: `VERIFICATION_FAILED`.
    """
    faults = [
        *_interface_faults(model, layers),
        *_layer_faults(model, layers),
        *weights.reader_faults(),
    ]
    if faults:
        raise _verification_failed(faults)


def verify_written(model: ir.Model, path: Path, weights: WeightGuard) -> None:
    """Check a model file: with ONNX's own checker, and that every weight is what it was.

    Args:
        model: What was written.
        path: Where to.
        weights: What they were.

    Raises:
        GearError: `VERIFICATION_FAILED`.
    """
    check_file(path)
    faults = list(weights.content_faults(model, path))
    if faults:
        raise _verification_failed(faults)


def check_file(path: Path) -> None:
    """Let ONNX's own checker look at a model file.

    Raises:
        GearError: `VERIFICATION_FAILED`.
    """
    proto = onnx.load(path, load_external_data=False)
    # ONNX Runtime's tools put ops of their own into ONNX's domain, which the checker refuses.
    if not all(_is_known(node) for node in proto.graph.node):
        return
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise _verification_failed(str(error).splitlines()) from error


def _is_known(node: onnx.NodeProto) -> bool:
    return bool(node.domain) or onnx.defs.has(node.op_type)


def _verification_failed(faults: list[str]) -> GearError:
    return GearError(
        ErrorCode.VERIFICATION_FAILED,
        f"the rewritten model is not valid: {faults[0]}",
        hint="this is a bug of gear_trt: please report it with the model's name",
        detail="\n".join(faults[1:]) or None,
    )


def _interface_faults(model: ir.Model, layers: int) -> Iterator[str]:
    expected = {
        "inputs": [
            graph.INPUT_IDS,
            graph.PAST_LENGTHS,
            graph.NEW_LENGTHS,
            graph.SLOTS,
            graph.PAGE_TABLE,
            *map(graph.page_pool_input, range(layers)),
            *map(graph.residual_buffer_input, range(layers)),
        ],
        "outputs": [
            graph.LOGITS,
            *map(graph.page_pool_output, range(layers)),
            *map(graph.residual_buffer_output, range(layers)),
        ],
    }
    actual = {"inputs": model.graph.inputs, "outputs": model.graph.outputs}
    for side, names in expected.items():
        found = [value.name for value in actual[side]]
        if found != names:
            yield f"{side} are {found}, not {names}"
        for value in actual[side]:
            if value.shape is None or value.dtype is None:
                yield f"{side[:-1]} {value.name} has no type or shape"
    if model.metadata_props.get(LAYOUT_HASH_KEY) != layout_hash():
        yield f"metadata has no {LAYOUT_HASH_KEY}"


def _layer_faults(model: ir.Model, layers: int) -> Iterator[str]:
    nodes = attention_nodes(model.graph)
    found = [node.attributes.get_int("layer", -1) for node in nodes]
    if found != list(range(layers)):
        yield f"{GEAR_ATTENTION.name} nodes are of layers {found}, not of 0 to {layers - 1}"
    for node in nodes:
        yield from _node_faults(node)
    for node in model.graph:
        if node.op_type == SYMBOLIC_OP:
            yield f"node {node.name} was not routed"
        for value in node.inputs:
            if value is not None and not _has_source(value):
                yield f"node {node.name} reads {value.name}, which nothing writes"


def _has_source(value: ir.Value) -> bool:
    node = value.producer()
    is_written = node is not None and node.graph is not None
    return is_written or value.is_graph_input() or value.is_initializer()


def _node_faults(node: ir.Node) -> Iterator[str]:
    missing = [item.name for item in GEAR_ATTENTION.attributes if item.name not in node.attributes]
    if missing:
        yield f"node {node.name} has no attributes {missing}"
    arity = (len(node.inputs), len(node.outputs))
    if arity != (len(GEAR_ATTENTION.inputs), len(GEAR_ATTENTION.outputs)):
        yield f"node {node.name} has {arity[0]} inputs and {arity[1]} outputs"
    layer = node.attributes.get_int("layer", -1)
    states = {
        "page_pool": graph.page_pool_input(layer),
        "residual_buffer": graph.residual_buffer_input(layer),
    }
    for spec, value in zip(GEAR_ATTENTION.inputs, node.inputs, strict=False):
        name = value.name if value is not None else None
        if name != states.get(spec.name, name):
            yield f"node {node.name} reads {name} as {spec.name}"
