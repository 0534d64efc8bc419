"""`gear eval`: what a compressed cache costs a model, beside the uncompressed one and its peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gear_trt.bench.dependencies import require
from gear_trt.cli import _ui

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from gear_trt.eval.contest import Contest
    from gear_trt.eval.records import EvalRow

SCHEMA = "gear.eval/1"

app = typer.Typer(
    help="Measure what a compressed cache costs a model, beside the uncompressed cache.",
    no_args_is_help=True,
)

Model = Annotated[
    Path,
    typer.Argument(help="GGUF file, Hugging Face folder or engine folder.", show_default=False),
]
Network = Annotated[
    Path, typer.Argument(help="GGUF file or Hugging Face folder.", show_default=False)
]
Text = Annotated[
    Path,
    typer.Argument(
        help="Text file, or JSON lines whose texts are read one after the other.",
        show_default=False,
    ),
]
Config = Annotated[
    list[str] | None,
    typer.Option(
        help="Preset, with overrides after a +, or a TOML file; may be repeated. An engine folder "
        "has its own.",
        show_default="k4v4",
    ),
]
ScaleKeys = Annotated[
    bool,
    typer.Option(
        "--scale-keys/--no-scale-keys",
        help="Scale the channels of keys, as gear-export does. An engine folder has its own, or "
        "none.",
    ),
]
Peers = Annotated[
    str,
    typer.Option(
        help="Peers to run beside, with commas between; `all` for every one that is installed."
    ),
]
Sequences = Annotated[int, typer.Option(min=1, help="Sequences of the text, side by side.")]
Context = Annotated[int, typer.Option(min=1, help="Tokens of each sequence.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Out = Annotated[
    Path | None,
    typer.Option(help="JSON lines file to append rows to, with machine, versions and commit."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")]


@app.command()
def text(
    model: Model,
    text: Text,
    config: Config = None,
    scale_keys: ScaleKeys = True,
    peers: Peers = "",
    sequences: Sequences = 4,
    context: Context = 1024,
    threads: Threads = 1,
    out: Out = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare next-token distributions on a text: KL, top-1 agreement, perplexity.

    The text is fed in slices of 12 tokens, teacher-forced: exact inside a slice, everything older
    through the cache, of which the newest chunk at most is uncompressed. Intervals hold 95 %.
    """

    def action() -> None:
        from gear_trt.eval.contest import with_peers
        from gear_trt.eval.judge import judge
        from gear_trt.eval.text import read_sequences

        kept = _Kept(out)
        with _ui.progress_bar() as progress:
            progress("loading", model.name, 0.0)
            contest = _open(model, config, scale_keys, capacity=context, threads=threads)
            names = _peer_names(peers)
            tokens_BT = read_sequences(
                text, contest.tokenizer, sequences=sequences + bool(names), context=context
            )
            contest = with_peers(contest, names, tokens_BT[sequences:, :context])
            for row in judge(
                contest.subject,
                contest.caches,
                tokens_BT[:sequences],
                progress,
                text_name=text.name,
            ):
                kept.add(row)
        if json:
            _print_json("text", kept.rows)
        else:
            _print_text(kept.rows)

    _ui.run(action, json=json, verbose=verbose)


@app.command()
def layers(
    model: Network,
    text: Text,
    config: Config = None,
    scale_keys: ScaleKeys = True,
    peers: Peers = "",
    context: Context = 1024,
    threads: Threads = 1,
    out: Out = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure the error of keys, values and attention output of each layer by itself.

    Each layer gets the queries, keys and values of the uncompressed model. Errors are normalized
    mean squared errors.
    """

    def action() -> None:
        from gear_trt.eval.contest import open_network, with_peers
        from gear_trt.eval.layers import measure
        from gear_trt.eval.text import read_sequences

        kept = _Kept(out)
        with _ui.progress_bar() as progress:
            progress("loading", model.name, 0.0)
            contest = open_network(
                model, configs=config or (), scale_keys=scale_keys, threads=threads
            )
            names = _peer_names(peers)
            tokens_BT = read_sequences(
                text, contest.tokenizer, sequences=1 + bool(names), context=context
            )[:, :context]
            contest = with_peers(contest, names, tokens_BT[1:])
            for found in measure(contest, tokens_BT[:1], progress, text_name=text.name):
                kept.add(*found)
        if json:
            _print_json("layers", kept.rows)
        else:
            _print_rows(
                kept.rows, ("candidate", "layer", "key_error", "value_error", "output_error")
            )

    _ui.run(action, json=json, verbose=verbose)


@app.command()
def greedy(
    model: Model,
    text: Text,
    config: Config = None,
    scale_keys: ScaleKeys = True,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts, all from the text.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate after each.")] = 128,
    threads: Threads = 1,
    out: Out = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Count the tokens that greedy decoding writes before it leaves the uncompressed cache's."""

    def action() -> None:
        import torch

        from gear_trt.eval import greedy as decoding
        from gear_trt.eval.text import read_sequences

        kept = _Kept(out)
        with _ui.progress_bar() as progress:
            progress("loading", model.name, 0.0)
            contest = _open(
                model, config, scale_keys, capacity=prompt_tokens + tokens, threads=threads
            )
            sequences_BT = read_sequences(
                text, contest.tokenizer, sequences=prompts, context=prompt_tokens
            )
            prompts_BT = torch.from_numpy(sequences_BT[:, :prompt_tokens])
            progress("uncompressed", text.name, 0.0)
            exact_BS = decoding.continued(contest.subject.exact(), prompts_BT, tokens)
            for index, cache in enumerate(contest.caches, start=1):
                progress(cache.name, text.name, index / (len(contest.caches) + 1))
                other_BS = decoding.continued(contest.subject.with_cache(cache), prompts_BT, tokens)
                kept.add(
                    decoding.compare(
                        cache.name,
                        prompts_BT,
                        exact_BS,
                        other_BS,
                        model=contest.subject.name,
                        text=text.name,
                    )
                )
        if json:
            _print_json("greedy", kept.rows)
        else:
            _print_rows(
                kept.rows, ("candidate", "new_tokens", "agreement", "agreement_error", "identical")
            )

    _ui.run(action, json=json, verbose=verbose)


@app.command()
def passkey(
    model: Model,
    config: Config = None,
    scale_keys: ScaleKeys = True,
    context: Annotated[
        str, typer.Option(help="Tokens of the prompts, with commas between; k is 1024.")
    ] = "1k,2k",
    depth: Annotated[
        str, typer.Option(help="Where the number stands, 0 (start) to 1 (end).")
    ] = "0.1,0.5,0.9",
    threads: Threads = 1,
    out: Out = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Ask for a number hidden in a long text, uncompressed and through each cache."""

    def action() -> None:
        from gear_trt.bench.grid import parse_counts
        from gear_trt.eval.passkey import ask_all, parse_depths

        contexts = parse_counts(context, "--context")
        depths = parse_depths(depth)
        kept = _Kept(out)
        with _ui.progress_bar() as progress:
            progress("loading", model.name, 0.0)
            contest = _open(model, config, scale_keys, capacity=max(contexts) + 16, threads=threads)
            for found in ask_all(contest, contexts, depths, progress):
                kept.add(*found)
        if json:
            _print_json("passkey", kept.rows)
        else:
            _print_rows(kept.rows, ("candidate", "context", "depth", "key", "answer", "is_right"))

    _ui.run(action, json=json, verbose=verbose)


@app.command()
def questions(
    model: Model,
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON lines with question and answer, as GSM8K has them.", show_default=False
        ),
    ],
    examples: Annotated[
        Path, typer.Option(help="Text file with worked examples, put before each question.")
    ],
    config: Config = None,
    scale_keys: ScaleKeys = True,
    count: Annotated[int, typer.Option(min=1, help="Questions to ask: the first ones.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 256,
    threads: Threads = 1,
    out: Out = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Ask questions whose answer is a number, with worked examples (GSM8K chain of thought).

    The answer is the last number after "The answer is", decoded greedily.
    """

    def action() -> None:
        from gear_trt.eval.questions import ask_all, read_questions

        asked = read_questions(file, count)
        prompt = examples.read_text(encoding="utf-8")
        kept = _Kept(out)
        with _ui.progress_bar() as progress:
            progress("loading", model.name, 0.0)
            contest = _open(model, config, scale_keys, capacity=None, threads=threads)
            for row in ask_all(
                contest, asked, examples=prompt, max_new_tokens=max_new_tokens, progress=progress
            ):
                kept.add(row)
        if json:
            _print_json("questions", kept.rows)
        else:
            _print_scores(kept.rows)

    _ui.run(action, json=json, verbose=verbose)


@app.command()
def harness(
    model: Model,
    tasks: Annotated[
        str, typer.Argument(help="Names of tasks, with commas between.", show_default=False)
    ],
    config: Config = None,
    scale_keys: ScaleKeys = True,
    include: Annotated[
        Path | None, typer.Option(help="Folder with tasks of your own, as YAML.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Documents of each task.", show_default="all")
    ] = None,
    threads: Threads = 1,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run tasks of lm-evaluation-harness, uncompressed and through each cache."""

    def action() -> None:
        require("lm_eval")
        from gear_trt.eval.harness import HarnessModel, HarnessRow, evaluate

        rows: list[HarnessRow] = []
        with _ui.progress_bar() as progress:
            progress("loading", model.name, 0.0)
            contest = _open(model, config, scale_keys, capacity=None, threads=threads)
            subject, decoders = contest.subject, contest.decoders()
            for index, (name, decoder) in enumerate(decoders):
                progress(name, tasks, index / (len(contest.caches) + 1))
                adapter = HarnessModel(decoder, contest.tokenizer, subject.max_context)
                rows += evaluate(name, adapter, tasks.split(","), include=include, limit=limit)
        if json:
            _print_json("harness", rows)
        else:
            _print_rows(rows, ("candidate", "task", "metric", "value", "error", "samples"))

    _ui.run(action, json=json, verbose=verbose)


@app.command()
def plot(
    rows: Annotated[
        list[Path],
        typer.Argument(help="JSON lines files that --out wrote.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write SVG files to.")
    ] = Path(),
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Draw KL and perplexity against bytes, and the error of each layer."""

    def action() -> None:
        require("matplotlib")
        from gear_trt.eval import plot as drawing
        from gear_trt.eval.layers import LayerRow
        from gear_trt.eval.records import EvalRow, read_rows

        files = drawing.draw(
            [row for path in rows for row in read_rows(path, EvalRow)],
            [row for path in rows for row in read_rows(path, LayerRow)],
            output,
        )
        if json:
            fields: dict[str, object] = {"measure": "plot", "files": [str(file) for file in files]}
            _ui.emit_json(SCHEMA, fields)
            return
        for file in files:
            typer.echo(file)

    _ui.run(action, json=json, verbose=verbose)


def _open(
    model: Path, config: list[str] | None, scale_keys: bool, *, capacity: int | None, threads: int
) -> Contest:
    from gear_trt.eval.contest import is_engine, open_engine, open_network

    configs = config or ()
    if is_engine(model):
        return open_engine(
            model, configs=configs, scale_keys=scale_keys, capacity=capacity, threads=threads
        )
    return open_network(model, configs=configs, scale_keys=scale_keys, threads=threads)


def _peer_names(text: str) -> tuple[str, ...]:
    from gear_trt.bench.grid import parse_names
    from gear_trt.eval.peers import PEERS, available_peers

    if text == "all":
        return available_peers()
    return parse_names(text, "peer", PEERS) if text else ()


class _Kept:
    """Rows as they come, appended at once to a file where one is given.

    Args:
        out: The file; it must be writable before anything is measured.
    """

    def __init__(self, out: Path | None) -> None:
        self.rows: list[Any] = []
        self._out = out
        self.add()

    def add(self, *rows: BaseModel) -> None:
        """Keep rows."""
        from gear_trt.bench.records import append_rows

        self.rows += rows
        if self._out:
            append_rows(self._out, [row.model_dump() for row in rows])


def _print_json(measure: str, rows: Sequence[BaseModel]) -> None:
    from gear_trt.bench.machine import environment

    _ui.emit_json(
        SCHEMA,
        {
            "measure": measure,
            "environment": environment(),
            "rows": [row.model_dump() for row in rows],
        },
    )


def _print_text(rows: Sequence[EvalRow]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("cache", overflow="fold")
    for name in ("bits", "B/tok", "smaller", "KL", "±", "top-1 %", "±", "ppl ×", "±"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.candidate} (simulated)" if row.is_simulated else row.candidate,
            f"{row.bits_per_element:.2f}",
            f"{row.bytes_per_token:,.0f}",
            f"{row.fp16_bytes_per_token / row.bytes_per_token:.2f}x",
            f"{row.kl:.5f}",
            f"{row.kl_error:.5f}",
            f"{100 * row.top1:.1f}",
            f"{100 * row.top1_error:.1f}",
            f"{row.perplexity_ratio:.4f}",
            f"{row.perplexity_ratio_error:.4f}",
        )
    _ui.print_table(table)
    first = rows[0]
    _ui.stdout.print(
        f"{first.tokens} tokens of {first.text} in {first.sequences} sequences of {first.context}; "
        f"perplexity {first.exact_perplexity:.2f} uncompressed; smaller: than FP16",
        highlight=False,
        soft_wrap=True,
    )


def _print_scores(rows: Sequence[Any]) -> None:
    from rich.table import Table

    table = Table("cache", "questions", "right", "as uncompressed", box=None)
    names = list(dict.fromkeys(row.candidate for row in rows))
    answers = {name: [row for row in rows if row.candidate == name] for name in names}
    for name, given in answers.items():
        same = sum(
            row.answer == exact.answer for row, exact in zip(given, answers[names[0]], strict=True)
        )
        table.add_row(name, *map(str, (len(given), sum(row.is_right for row in given), same)))
    _ui.print_table(table)


def _print_rows(rows: Sequence[BaseModel], columns: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text as Plain

    table = Table(*(name.replace("_", " ") for name in columns), box=None)
    for row in rows:
        table.add_row(*(Plain(_cell(getattr(row, name))) for name in columns))
    _ui.print_table(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else " ".join(str(value).split())
