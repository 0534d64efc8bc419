"""Writes the engine folder of ONNX Runtime: graph, weights, manifest, tokenizer, report."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from gear_trt.export.passes.sites import KvSite
from gear_trt.export.passes.verify import check_file
from gear_trt.runtime.manifest import MODEL_FILE, LayerFacts, Manifest, ModelFacts
from gear_trt.spec import CompressionConfig, layout_hash

WEIGHTS_FILE = f"{MODEL_FILE}.data"
WEIGHT_ALIGNMENT = 4096
"""Bytes: weights are mapped into memory page by page."""


def write_engine(
    folder: Path,
    model: ir.Model,
    manifest: Manifest,
    write_companions: Callable[[Path], None],
) -> None:
    """Fill an empty folder.

    Args:
        folder: Where to.
        model: The routed model; weights are streamed from where they are.
        manifest: What the folder says of itself.
        write_companions: Writes tokenizer and generation config.

    Raises:
        GearError: `VERIFICATION_FAILED` where ONNX's checker refuses what was written.
        OSError: The disk is full, or the folder cannot be written.
    """
    path = folder / MODEL_FILE
    try:
        ir.save(model, path, external_data=WEIGHTS_FILE, alignment=WEIGHT_ALIGNMENT)
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy says only how much of an array it could not write
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    check_file(path)
    write_companions(folder)
    manifest.write(folder)


def layer_facts(site: KvSite, config: CompressionConfig) -> LayerFacts:
    """Return what the runtime must know of one layer."""
    return LayerFacts(
        num_heads=site.facts.num_heads,
        num_kv_heads=site.facts.num_kv_heads,
        head_dim=site.facts.head_dim,
        config=config,
    )


def manifest_of(
    model: ModelFacts, layers: tuple[LayerFacts, ...], versions: dict[str, str]
) -> Manifest:
    """Return the manifest of a model that was routed for this page layout."""
    return Manifest(layout_hash=layout_hash(), versions=versions, model=model, layers=layers)


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every file of a folder by its name."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
