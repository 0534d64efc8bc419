"""`gear inspect`: what an engine folder holds, or what an ONNX model would become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gear_trt.cli import _ui
from gear_trt.errors import ExitStatus

if TYPE_CHECKING:
    from gear_trt.runtime.summary import EngineSummary

SCHEMA = "gear.inspect/1"
MODEL_SUFFIX = ".onnx"


def inspect(
    path: Annotated[
        Path, typer.Argument(help="Engine folder, or an .onnx file.", show_default=False)
    ],
    max_context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest sequence of an .onnx file, in tokens.",
            show_default="what the files beside it say",
        ),
    ] = None,
    why: Annotated[
        bool,
        typer.Option(
            "--why", help="Of an .onnx file: show each layer, its node, and which check it fails."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")] = False,
) -> None:
    """Show an engine's model and compression, or which layers of a model can be routed."""

    def action() -> None:
        if path.suffix == MODEL_SUFFIX:
            _inspect_model(path, max_context=max_context, why=why, json=json)
        else:
            _inspect_engine(path, json=json)

    _ui.run(action, json=json, verbose=verbose)


def _inspect_engine(folder: Path, *, json: bool) -> None:
    from gear_trt.runtime.summary import EngineSummary

    summary = EngineSummary.of(folder)
    if json:
        _ui.emit_json(SCHEMA, summary)
    else:
        _print_summary(summary)


def _inspect_model(model: Path, *, max_context: int | None, why: bool, json: bool) -> None:
    from gear_trt.export import inspect_model
    from gear_trt.spec import DEFAULT_PRESET, CompressionConfig

    with _ui.progress() as progress:
        report = inspect_model(
            model,
            config=CompressionConfig.preset(DEFAULT_PRESET),
            max_context=max_context,
            progress=progress,
        )
    if json:
        _ui.emit_json(SCHEMA, report)
    else:
        _ui.print_sites(report.sites, each=why)
    if not report.routable:
        raise typer.Exit(ExitStatus.UNSUPPORTED)


def _print_summary(summary: EngineSummary) -> None:
    from rich.table import Table

    from gear_trt.spec.model_config import layer_ranges

    model = summary.model
    table = Table(show_header=False, box=None)
    table.add_row("source", model.source)
    table.add_row("architecture", model.architecture or "unknown")
    table.add_row("vocabulary", f"{model.vocab_size} tokens")
    table.add_row("longest context", f"{model.max_context} tokens")
    for group in summary.layer_groups:
        facts = group.facts
        table.add_row(
            f"layers {layer_ranges(group.layers)}",
            f"{facts.num_heads} heads, {facts.num_kv_heads} KV heads, head_dim {facts.head_dim}",
        )
        settings = facts.config.model_dump().items()
        table.add_row("", ", ".join(f"{name} {value}" for name, value in settings))
        table.add_row("", f"{group.bits_per_element:.2f} bits per K or V element")
    table.add_row("key scales", "yes" if summary.has_key_scales else "no")
    if summary.tuning is not None:
        table.add_row("tuned", summary.tuning.outcome)
    ratio = summary.fp16_bytes_per_token / summary.gear_bytes_per_token
    table.add_row("FP16 cache", f"{summary.fp16_bytes_per_token} bytes per token")
    table.add_row("GEAR cache", f"{summary.gear_bytes_per_token:.0f} bytes per token, {ratio:.2f}x")
    table.add_row("buffers", f"{summary.buffer_bytes} bytes per sequence")
    table.add_row("page layout", summary.layout_hash)
    table.add_row("made with", ", ".join(f"{k} {v}" for k, v in summary.versions.items()))
    _ui.print_table(table)
