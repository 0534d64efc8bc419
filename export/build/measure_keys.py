"""Runs an exported graph once, to see how large its queries and keys are, channel by channel."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

from gear_trt.export.passes.scale_keys import KEY, QUERY, attention_nodes
from gear_trt.export.passes.sites import Array, present
from gear_trt.reference.key_scales import sequence_scales
from gear_trt.runtime.cache import GearCache
from gear_trt.runtime.graph_state import state_names
from gear_trt.runtime.manifest import MODEL_FILE, Manifest
from gear_trt.runtime.onnxruntime import FAILURES, load_failure, run_failure, session_options
from gear_trt.spec import graph
from gear_trt.spec.calibration import calibration_tokens

PROBE_FILE = "measured.onnx"
"""The graph with queries and keys as outputs; it lies beside the weights while it runs."""

_MEASURED = {"measured_query": QUERY, "measured_key": KEY}
"""Outputs of that graph for each layer, and which input of the op they are."""


def measure_key_scales(folder: Path, manifest: Manifest) -> list[Array | None]:
    """Run random tokens through a written engine and return the scales of its keys.

    Args:
        folder: The engine folder.
        manifest: What it says of itself.

    Returns:
        Per layer [H, D] float32; None where scales would change nothing.

    Raises:
        GearError: `UNSUPPORTED_MODEL` for a type with which CPUs do not compute, `OUT_OF_MEMORY`,
            `MISSING_LIBRARY`, `DAMAGED_ENGINE`.
    """
    layers = [layer for layer, facts in enumerate(manifest.layers) if facts.config.scales_keys]
    scales: list[Array | None] = [None] * len(manifest.layers)
    if not layers:
        return scales
    with _probe(folder, layers) as path:
        for layer, (query_TM, key_TM) in _run(path, manifest, layers):
            facts = manifest.layers[layer]
            queries_NTD = _heads_first(query_TM, facts.num_heads)
            keys_HTD = _heads_first(key_TM, facts.num_kv_heads)
            scales[layer] = sequence_scales(queries_NTD, keys_HTD, facts.config)
    return scales


@contextmanager
def _probe(folder: Path, layers: Sequence[int]) -> Iterator[Path]:
    """Write the graph with queries and keys of these layers as outputs; remove it at the end."""
    model = ir.load(folder / MODEL_FILE)
    for node in attention_nodes(model.graph):
        layer = node.attributes.get_int("layer", -1)
        if layer in layers:
            model.graph.outputs.extend(_copies(model.graph, node, layer))
    path = folder / PROBE_FILE
    try:
        ir.save(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _copies(main: ir.Graph, node: ir.Node, layer: int) -> Iterator[ir.Value]:
    """Yield copies of a node's queries and keys that may be outputs."""
    for name, index in _MEASURED.items():
        value = present(node.inputs[index])
        copied = ir.val(f"{name}.{layer}", present(value.dtype), value.shape)
        main.insert_before(node, ir.node("Identity", [value], outputs=[copied]))
        yield copied


def _run(
    path: Path, manifest: Manifest, layers: Sequence[int]
) -> Iterator[tuple[int, tuple[Array, Array]]]:
    """Yield queries [T, N·D] and keys [T, H·D] of layers, for one call with random tokens."""
    tokens_BT = calibration_tokens(manifest.model.vocab_size, manifest.model.max_context)
    cache = GearCache(manifest.layers, batch=1, max_tokens=tokens_BT.shape[1])
    session, binding = _bound(path, cache, tokens_BT)
    for layer in layers:
        for name in _MEASURED:
            binding.bind_output(f"{name}.{layer}", "cpu")
    try:
        session.run_with_iobinding(binding)
    except FAILURES as error:
        raise run_failure(error) from None
    measured = [value.numpy()[0] for value in binding.get_outputs()[-2 * len(layers) :]]
    yield from zip(layers, zip(measured[::2], measured[1::2], strict=True), strict=True)


def _bound(path: Path, cache: GearCache, tokens_BT: NDArray[np.int64]) -> tuple[Any, Any]:
    """Return a session and a binding (both untyped) of its inputs, and of the state's outputs."""
    try:
        session: Any = InferenceSession(
            path, session_options(len(os.sched_getaffinity(0))), ["CPUExecutionProvider"]
        )
    except FAILURES as error:
        raise load_failure(path, str(error)) from None
    binding = session.io_binding()
    for name, array in (
        (graph.INPUT_IDS, tokens_BT),
        (graph.PAST_LENGTHS, cache.lengths),
        (graph.NEW_LENGTHS, np.array([tokens_BT.shape[1]], np.int32)),
        (graph.SLOTS, cache.slots),
        (graph.PAGE_TABLE, cache.page_table),
        *((name, array) for (name, _), array in state_names(cache)),
    ):
        binding.bind_cpu_input(name, array)
    for (_, name), array in state_names(cache):
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return session, binding


def _heads_first(side_TM: Array, heads: int) -> Array:
    """Return [heads, T, D] float32."""
    return side_TM.astype(np.float32).reshape(len(side_TM), heads, -1).swapaxes(0, 1)
