"""Runs an exported graph layer by layer, to see how large queries and keys are in each channel.

Only one layer is in memory at a time: what every stage computes goes to the next one as arrays, and
what comes after the last layer's queries and keys never runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnxruntime.capi.onnxruntime_inference_collection import OrtValue
from onnxruntime.capi.onnxruntime_pybind11_state import GraphOptimizationLevel, SessionOptions

from gear_trt.export.passes.nodes import attention_nodes
from gear_trt.export.passes.scale_keys import KEY, QUERY
from gear_trt.export.passes.sites import Array, present
from gear_trt.export.passes.widen import widen
from gear_trt.reference.key_scales import sequence_scales
from gear_trt.runtime.cache import GearCache
from gear_trt.runtime.graph_state import state_names
from gear_trt.runtime.manifest import MODEL_FILE, Manifest
from gear_trt.runtime.onnxruntime import (
    FAILURES,
    call_inputs,
    open_session,
    run_failure,
    session_options,
)
from gear_trt.spec.calibration import calibration_tokens

STAGE_FILE = "stage.onnx"
"""A part of the graph; it lies beside the weights while it runs."""

_Known = dict[str, OrtValue]
"""Arrays by the name of the value that they are."""


def measure_key_scales(folder: Path, manifest: Manifest) -> list[Array | None]:
    """Run random tokens through a written engine and return the scales of its keys.

    Args:
        folder: The engine folder.
        manifest: What it says of itself.

    Returns:
        Per layer [H, D] float32; None where scales would change nothing.

    Raises:
        GearError: `UNSUPPORTED_MODEL` for an op that CPUs do not run, `OUT_OF_MEMORY`,
            `MISSING_LIBRARY`, `DAMAGED_ENGINE`.
    """
    scales: list[Array | None] = [None] * len(manifest.layers)
    unmeasured = {layer for layer, facts in enumerate(manifest.layers) if facts.config.scales_keys}
    if not unmeasured:
        return scales
    for layer, query_TM, key_TM in _run(folder, manifest):
        facts = manifest.layers[layer]
        queries_NTD = _heads_first(query_TM, facts.num_heads)
        keys_HTD = _heads_first(key_TM, facts.num_kv_heads)
        scales[layer] = sequence_scales(queries_NTD, keys_HTD, facts.config)
        unmeasured.discard(layer)
        if not unmeasured:
            break
    return scales


def _run(folder: Path, manifest: Manifest) -> Iterator[tuple[int, Array, Array]]:
    """Yield layers with queries [T, N·D] and keys [T, H·D], for one call with random tokens."""
    model = ir.load(folder / MODEL_FILE)
    nodes = list(model.graph)
    tokens_BT = calibration_tokens(manifest.model.vocab_size, manifest.model.max_context)
    cache = GearCache(manifest.layers, batch=1, max_tokens=tokens_BT.shape[1])
    known = _inputs(cache, tokens_BT)
    start = 0
    for node in attention_nodes(model.graph):
        end = nodes.index(node)
        known |= _run_stage(folder, model, nodes[start:end], known)
        query, key = (known[_name(present(node.inputs[index]))] for index in (QUERY, KEY))
        yield node.attributes.get_int("layer", -1), query.numpy()[0], key.numpy()[0]
        known = _still_read(model.graph, known, done=set(nodes[:end]))
        start = end


def _inputs(cache: GearCache, tokens_BT: Array) -> _Known:
    """Return all inputs of the graph for a call with these tokens."""
    arrays = call_inputs(cache, tokens_BT, np.array([tokens_BT.shape[1]], np.int32))
    arrays |= {name: array for (name, _), array in state_names(cache)}
    return {name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


def _run_stage(folder: Path, model: ir.Model, nodes: list[ir.Node], known: _Known) -> _Known:
    """Run nodes that follow one another, and return those of their outputs that others read."""
    wanted = _read_elsewhere(nodes)
    if not wanted:
        return {}
    stage = ir.convenience.extract(model.graph, list(known), wanted)
    widen(stage)
    for value in stage.inputs:
        array = known[_name(value)]
        value.dtype, value.shape = ir.DataType(array.element_type()), ir.Shape(array.shape())
    path = folder / STAGE_FILE
    try:
        ir.save(ir.Model(stage, ir_version=model.ir_version), path)
        _, session = open_session(folder, _options(), ["CPUExecutionProvider"], file=STAGE_FILE)
    finally:
        path.unlink(missing_ok=True)
    try:
        results = session.run_with_ort_values(wanted, known)
    except FAILURES as error:
        raise run_failure(error) from None
    return dict(zip(wanted, results, strict=True))


def _options() -> SessionOptions:
    """Without optimizations, which would convert all weights before the first product."""
    options = session_options(len(os.sched_getaffinity(0)))
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _read_elsewhere(nodes: list[ir.Node]) -> list[str]:
    """Return the names of what nodes compute that others read, those inside their bodies too."""
    own = set(nodes)
    return [
        _name(value)
        for node in nodes
        for value in node.outputs
        if any(reader not in own for reader in value.consumers())
    ]


def _still_read(main: ir.Graph, known: _Known, done: set[ir.Node]) -> _Known:
    """Leave out what only nodes that are done read."""
    values = ir.convenience.create_value_mapping(main, include_subgraphs=False)
    return {
        name: array
        for name, array in known.items()
        if any(reader not in done for reader in values[name].consumers())
    }


def _heads_first(side_TM: Array, heads: int) -> Array:
    """Return [heads, T, D] float32."""
    return side_TM.astype(np.float32).reshape(len(side_TM), heads, -1).swapaxes(0, 1)


def _name(value: ir.Value) -> str:
    return present(value.name)
