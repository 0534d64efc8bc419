"""`gear serve`: an OpenAI-compatible server over an engine folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gear_trt.cli import _ui
from gear_trt.cli._types import parse_bytes
from gear_trt.runtime.choice import BackendName

SCHEMA = "gear.serve/1"
_LIMITS = "Limits: what is beyond them is refused"


def serve(
    engine: Annotated[Path, typer.Argument(help="Engine folder.", show_default=False)],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every network of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the key that clients must send.",
            show_default="GEAR_API_KEY of the environment",
        ),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(help="Name that clients ask for.", show_default="the folder's"),
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
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", show_default="all")
    ] = None,
    backend: Annotated[
        BackendName,
        typer.Option(help="What runs the graph; `auto` takes the fastest that there is."),
    ] = BackendName.AUTO,
    max_waiting: Annotated[
        int,
        typer.Option(
            min=0,
            help="Answers that may wait; more get status 429.",
            rich_help_panel=_LIMITS,
        ),
    ] = 256,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of one prompt.",
            rich_help_panel=_LIMITS,
            show_default="what the cache and the model hold",
        ),
    ] = None,
    max_body: Annotated[
        int,
        typer.Option(
            parser=parse_bytes, metavar="SIZE", help="Of one request.", rich_help_panel=_LIMITS
        ),
    ] = "1MiB",  # type: ignore[assignment]
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Seconds from a request to the end of its answer.",
            rich_help_panel=_LIMITS,
            show_default="none",
        ),
    ] = None,
    drain: Annotated[
        int,
        typer.Option(
            min=0,
            help="Seconds that answers may take to end after SIGTERM or Ctrl-C.",
            rich_help_panel=_LIMITS,
        ),
    ] = 30,
    json: Annotated[
        bool, typer.Option("--json", help="Print the address as one JSON object.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the log, a line per request.")
    ] = False,
) -> None:
    """Serve chat and text completions with OpenAI's API, and a page to try them in a browser."""

    def action() -> None:
        from gear_trt.serving.extra import require

        require()
        from gear_trt.serving.app import Settings
        from gear_trt.serving.limits import Limits
        from gear_trt.serving.server import Place, Resources, read_api_key
        from gear_trt.serving.server import serve as serve_until_signal

        limits = Limits(
            body_bytes=max_body,
            prompt_tokens=max_prompt_tokens,
            answers=max_batch + max_waiting,
            seconds=timeout,
        )
        name = model_name or engine.resolve().name

        def announce(url: str) -> None:
            if json:
                _ui.emit_json(SCHEMA, {"url": url, "model": name})
            else:
                typer.echo(f"serving {name} at {url}")

        serve_until_signal(
            engine,
            Settings(name, limits, read_api_key(api_key_file)),
            place=Place(host, port, drain_seconds=drain, access_log=verbose),
            resources=Resources(max_cache, max_batch, threads, backend),
            announce=announce,
        )

    _ui.run(action, json=json, verbose=verbose)
