"""Writes the engine folder of ONNX Runtime: graph, weights, manifest, tokenizer, report."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from gear_trt.export.data_file import clone
from gear_trt.export.passes.sites import KvSite
from gear_trt.export.passes.verify import check_file, verify_written
from gear_trt.export.passes.weights import WeightGuard
from gear_trt.export.source.source import Progress
from gear_trt.runtime.manifest import MODEL_FILE, LayerFacts, Manifest, ModelFacts, TuningFacts
from gear_trt.spec import CompressionConfig, layout_hash

WEIGHTS_FILE = f"{MODEL_FILE}.data"
"""Weights that were in memory; those of a source file stay together: `cloned_file`."""
WEIGHT_ALIGNMENT = 4096
"""Bytes: weights are mapped into memory page by page."""
INLINE_BYTES = 256
"""Tensors up to this size are written into the graph."""
_GIGA = 1e9


def cloned_file(index: int) -> str:
    """Name of the copy of the source's external data file `index`."""
    return f"{MODEL_FILE}.{index}.data"


def write_engine(
    folder: Path,
    model: ir.Model,
    manifest: Manifest,
    *,
    write_companions: Callable[[Path], None],
    weights: WeightGuard,
    progress: Progress,
) -> None:
    """Fill an empty folder, and check what was written.

    Args:
        folder: Where to.
        model: The routed model; its weights refer to the new files afterwards.
        manifest: What the folder says of itself.
        write_companions: Writes tokenizer and generation config.
        weights: What they were before the rewrite.
        progress: Told how far the copy of a large file is.

    Raises:
        GearError: `VERIFICATION_FAILED` where ONNX's checker refuses what was written, or a weight
            is not what it was.
        OSError: The disk is full, or the folder cannot be written.
    """
    path = folder / MODEL_FILE
    _clone_data_files(model, folder, progress)
    try:
        _write_weights(model, folder)
        ir.save(model, path)
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy says only how much of an array it could not write
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    verify_written(model, path, weights)
    write_companions(folder)
    manifest.write(folder)


def rewrite_graph(folder: Path, model: ir.Model) -> None:
    """Write the graph of a written engine again; its weights stay where they are.

    Args:
        folder: What `write_engine` filled.
        model: The same model, with other nodes and small initializers.

    Raises:
        GearError: `VERIFICATION_FAILED`.
        OSError: The disk is full.
    """
    path = folder / MODEL_FILE
    ir.save(model, path)
    check_file(path)


def _clone_data_files(model: ir.Model, folder: Path, progress: Progress) -> None:
    """Give the folder data files of its own, and let the weights in them refer to those."""
    names: dict[Path, str] = {}
    for value in _initializers(model):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        source = Path(tensor.path).resolve()
        if source not in names:
            names[source] = cloned_file(len(names))
            clone(source, folder / names[source], _announced(source, progress))
        value.const_value = ir.ExternalTensor(
            names[source],
            tensor.offset,
            tensor.nbytes,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            base_dir=folder,
        )


def _announced(source: Path, progress: Progress) -> Callable[[float], None]:
    """Say every tenth of the copy of a file, where it takes a while."""
    size = source.stat().st_size
    tenths = 0

    def announce(fraction: float) -> None:
        nonlocal tenths
        if size > _GIGA and int(10 * fraction) > tenths:
            tenths = int(10 * fraction)
            progress(f"copying {source.name}: {10 * tenths} % of {size / _GIGA:.1f} GB")

    return announce


def _write_weights(model: ir.Model, folder: Path) -> None:
    """Write the weights that are in memory, one at a time."""
    values = [
        value
        for value in _initializers(model)
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor | ir.StringTensor)
        and value.const_value.nbytes > INLINE_BYTES
    ]
    if not values:
        return
    tensors = [value.const_value for value in values if value.const_value is not None]
    external: Sequence[ir.ExternalTensor] = ir.external_data.convert_tensors_to_external(
        tensors, folder, WEIGHTS_FILE, alignment=WEIGHT_ALIGNMENT
    )
    for value, tensor in zip(values, external, strict=True):
        value.const_value = tensor


def _initializers(model: ir.Model) -> list[ir.Value]:
    return [value for graph in model.graphs() for value in graph.initializers.values()]


def layer_facts(site: KvSite, config: CompressionConfig) -> LayerFacts:
    """Return what the runtime must know of one layer."""
    return LayerFacts(
        num_heads=site.facts.num_heads,
        num_kv_heads=site.facts.num_kv_heads,
        head_dim=site.facts.head_dim,
        config=config,
    )


def manifest_of(
    model: ModelFacts,
    layers: tuple[LayerFacts, ...],
    versions: dict[str, str],
    tuning: TuningFacts | None,
) -> Manifest:
    """Return the manifest of a model that was routed for this page layout."""
    return Manifest(
        layout_hash=layout_hash(), versions=versions, model=model, layers=layers, tuning=tuning
    )


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every file of a folder by its name."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
