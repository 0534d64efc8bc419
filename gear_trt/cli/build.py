"""`gear build`: the TensorRT engine of an engine folder, on the machine that will run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gear_trt.cli import _tensorrt, _ui

SCHEMA = "gear.export/1"
"""That of `gear-export`: both print the folder's report."""


def build(
    folder: Annotated[
        Path, typer.Argument(help="Engine folder of `gear-export`.", show_default=False)
    ],
    tensorrt: _tensorrt.Tensorrt = None,
    max_batch: _tensorrt.MaxBatch = None,
    max_new_tokens: _tensorrt.MaxNewTokens = None,
    compute_capability: _tensorrt.ComputeCapability = None,
    embed_plugin: _tensorrt.EmbedPlugin = False,
    version_compatible: _tensorrt.VersionCompatible = False,
    hardware_compatible: _tensorrt.HardwareCompatible = False,
    refit: _tensorrt.Refit = False,
    weight_streaming: _tensorrt.WeightStreaming = False,
    builder_level: _tensorrt.BuilderLevel = None,
    timing_cache: _tensorrt.TimingCache = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the log, and tracebacks of errors.")
    ] = False,
) -> None:
    """Build the TensorRT engine of an engine folder; one that it has is replaced.

    Without --tensorrt, TensorRT or TensorRT-RTX is taken, whichever is installed.
    """
    flags = _tensorrt.TensorRTFlags(
        max_batch=max_batch,
        max_new_tokens=max_new_tokens,
        compute_capability=tuple(compute_capability or ()),
        embed_plugin=embed_plugin,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        refit=refit,
        weight_streaming=weight_streaming,
        builder_level=builder_level,
        timing_cache=timing_cache,
    )

    def action() -> None:
        from gear_trt.export import add_tensorrt
        from gear_trt.tensorrt.library import import_tensorrt

        options = flags.options(tensorrt or import_tensorrt().flavour)
        with _ui.progress() as progress:
            report = add_tensorrt(folder, options, progress=progress)
        if json:
            _ui.emit_json(SCHEMA, report)
        elif report.tensorrt is not None:
            typer.echo(_tensorrt.describe(report.tensorrt))

    _ui.run(action, json=json, verbose=verbose)
