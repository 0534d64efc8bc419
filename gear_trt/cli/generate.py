"""`gear generate`: text from an engine folder, as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gear_trt.cli import _ui
from gear_trt.runtime.choice import BackendName

if TYPE_CHECKING:
    from gear_trt.runtime.cache import GearCache
    from gear_trt.runtime.generation import GenerationChunk, GenerationResult

SCHEMA = "gear.generate/1"
STDIN = "-"
MEGA = 1e6


def generate(
    engine: Annotated[Path, typer.Argument(help="Engine folder.", show_default=False)],
    prompt: Annotated[
        str,
        typer.Option("--prompt", "-p", help="Text; `-` reads it from stdin.", show_default=False),
    ],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens to generate at most.")
    ] = 256,
    temperature: Annotated[
        float | None, typer.Option(help="Draw at random; 0 takes the most likely token.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the most likely tokens of this probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes drawing repeatable.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", show_default="all")
    ] = None,
    backend: Annotated[
        BackendName,
        typer.Option(help="What runs the graph; `auto` takes the fastest that there is."),
    ] = BackendName.AUTO,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object when all is done.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")] = False,
) -> None:
    """Continue a text or answer a question, streaming to stdout."""

    def action() -> None:
        from gear_trt.runtime.engine import load
        from gear_trt.runtime.generation import GenerationResult

        with load(engine, threads=threads, backend=backend) as llm:
            chunks = llm.stream(
                _text(prompt),
                chat=not raw,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
            )
            result = GenerationResult.of(chunks if json else _echoed(chunks))
            if json:
                _ui.emit_json(SCHEMA, {**asdict(result), "fp16_bytes": llm.cache.fp16_bytes})
            else:
                _ui.stderr.print(_statistics(result, llm.cache), highlight=False)

    _ui.run(action, json=json, verbose=verbose)


def _text(prompt: str) -> str:
    if prompt != STDIN:
        return prompt
    return typer.get_text_stream("stdin", encoding="utf-8", errors="replace").read()


def _echoed(chunks: Iterator[GenerationChunk]) -> Iterator[GenerationChunk]:
    """Pass the chunks on, printing their text."""
    for chunk in chunks:
        typer.echo(chunk.text, nl=chunk.finish_reason is not None)
        yield chunk


def _statistics(result: GenerationResult, cache: GearCache) -> str:
    return (
        f"{result.prompt_tokens} prompt + {result.generated_tokens} new tokens, "
        f"{result.tokens_per_second:.1f} tokens/s, "
        f"cache {result.kv_bytes / MEGA:.2f} MB (FP16: {cache.fp16_bytes / MEGA:.2f} MB)"
    )
