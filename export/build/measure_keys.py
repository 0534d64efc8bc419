"""Runs an exported graph once, to see how large its queries and keys are, channel by channel."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gear_trt.export.passes.nodes import attention_nodes
from gear_trt.export.passes.scale_keys import KEY, QUERY
from gear_trt.export.passes.sites import Array, present
from gear_trt.reference.key_scales import sequence_scales
from gear_trt.runtime.cache import GearCache
from gear_trt.runtime.manifest import MODEL_FILE, Manifest
from gear_trt.runtime.onnxruntime import (
    FAILURES,
    bind_call,
    bind_state,
    open_session,
    run_failure,
    session_options,
)
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
    with _probe(folder, layers):
        for layer, (query_TM, key_TM) in _run(folder, manifest, layers):
            facts = manifest.layers[layer]
            queries_NTD = _heads_first(query_TM, facts.num_heads)
            keys_HTD = _heads_first(key_TM, facts.num_kv_heads)
            scales[layer] = sequence_scales(queries_NTD, keys_HTD, facts.config)
    return scales


@contextmanager
def _probe(folder: Path, layers: Sequence[int]) -> Iterator[None]:
    """Write the graph with queries and keys of these layers as outputs; remove it at the end."""
    model = ir.load(folder / MODEL_FILE)
    for node in attention_nodes(model.graph):
        layer = node.attributes.get_int("layer", -1)
        if layer in layers:
            model.graph.outputs.extend(_copies(model.graph, node, layer))
    path = folder / PROBE_FILE
    try:
        ir.save(model, path)
        yield
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
    folder: Path, manifest: Manifest, layers: Sequence[int]
) -> Iterator[tuple[int, tuple[Array, Array]]]:
    """Yield queries [T, N·D] and keys [T, H·D] of layers, for one call with random tokens."""
    options = session_options(len(os.sched_getaffinity(0)))
    _, session = open_session(folder, options, ["CPUExecutionProvider"], file=PROBE_FILE)
    tokens_BT = calibration_tokens(manifest.model.vocab_size, manifest.model.max_context)
    new_lengths = np.array([tokens_BT.shape[1]], np.int32)
    cache = GearCache(manifest.layers, batch=1, max_tokens=tokens_BT.shape[1])
    binding = session.io_binding()
    bind_state(binding, cache)
    bind_call(binding, cache, tokens_BT, new_lengths)
    for layer in layers:
        for name in _MEASURED:
            binding.bind_output(f"{name}.{layer}", "cpu")
    try:
        session.run_with_iobinding(binding)
    except FAILURES as error:
        raise run_failure(error) from None
    measured = [value.numpy()[0] for value in binding.get_outputs()[-2 * len(layers) :]]
    yield from zip(layers, zip(measured[::2], measured[1::2], strict=True), strict=True)


def _heads_first(side_TM: Array, heads: int) -> Array:
    """Return [heads, T, D] float32."""
    return side_TM.astype(np.float32).reshape(len(side_TM), heads, -1).swapaxes(0, 1)
