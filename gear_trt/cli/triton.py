"""`gear triton`: a model repository of Triton Inference Server."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from gear_trt.cli import _ui
from gear_trt.cli._types import parse_bytes
from gear_trt.runtime.choice import BackendName

SCHEMA = "gear.triton/1"


def triton(
    engine: Annotated[Path, typer.Argument(help="Engine folder.", show_default=False)],
    repository: Annotated[
        Path, typer.Argument(help="Model repository; it may hold other models.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model.", show_default="the engine folder's")
    ] = None,
    max_cache: Annotated[
        int,
        typer.Option(
            parser=parse_bytes, metavar="SIZE", help="Memory of the compressed cache, all answers."
        ),
    ] = "1GiB",  # type: ignore[assignment] # typer parses defaults
    max_batch: Annotated[
        int, typer.Option(min=1, help="Answers that are generated at the same time.")
    ] = 64,
    backend: Annotated[
        BackendName,
        typer.Option(help="What runs the graph; `auto` takes the fastest that Triton's host has."),
    ] = BackendName.AUTO,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")] = False,
) -> None:
    """Write an engine into a model repository of NVIDIA Triton Inference Server."""

    def action() -> None:
        from gear_trt.serving.triton.repository import write_models

        command = write_models(
            engine,
            repository,
            name=name or engine.resolve().name,
            max_cache_bytes=max_cache,
            max_batch=max_batch,
            backend=backend,
        )
        if json:
            _ui.emit_json(SCHEMA, {"repository": str(repository), "command": command})
        else:
            typer.echo(f"next: {shlex.join(command)}")

    _ui.run(action, json=json, verbose=verbose)
