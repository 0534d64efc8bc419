"""`gear inspect`: what an engine folder holds, or what an ONNX model would become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gear_trt.cli import _ui

if TYPE_CHECKING:
    from gear_trt.runtime.summary import EngineSummary

SCHEMA = "gear.inspect/1"


def inspect(
    path: Annotated[
        Path, typer.Argument(help="Engine folder, or an .onnx file.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")] = False,
) -> None:
    """Show an engine's model, compression and bytes per token; change nothing."""

    def action() -> None:
        from gear_trt.runtime.summary import EngineSummary

        summary = EngineSummary.of(path)
        if json:
            _ui.emit_json(SCHEMA, summary)
        else:
            _print_summary(summary)

    _ui.run(action, json=json, verbose=verbose)


def _print_summary(summary: EngineSummary) -> None:
    from rich.table import Table

    model = summary.model
    table = Table(show_header=False, box=None)
    table.add_row("source", model.source)
    table.add_row("architecture", model.architecture or "unknown")
    table.add_row("vocabulary", f"{model.vocab_size} tokens")
    table.add_row("longest context", f"{model.max_context} tokens")
    for group in summary.layer_groups:
        facts = group.facts
        table.add_row(
            f"{len(group.layers)} layers",
            f"{facts.num_heads} heads, {facts.num_kv_heads} KV heads, head_dim {facts.head_dim}",
        )
        settings = facts.config.model_dump().items()
        table.add_row("", ", ".join(f"{name} {value}" for name, value in settings))
        table.add_row("", f"{group.bits_per_element:.2f} bits per K or V element")
    ratio = summary.fp16_bytes_per_token / summary.gear_bytes_per_token
    table.add_row("FP16 cache", f"{summary.fp16_bytes_per_token} bytes per token")
    table.add_row("GEAR cache", f"{summary.gear_bytes_per_token:.0f} bytes per token, {ratio:.2f}x")
    table.add_row("buffers", f"{summary.buffer_bytes} bytes per sequence")
    table.add_row("page layout", summary.layout_hash)
    table.add_row("made with", ", ".join(f"{k} {v}" for k, v in summary.versions.items()))
    _ui.stdout.print(table, highlight=False)
