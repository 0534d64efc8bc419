"""`gear bench`: time the operator and whole models beside their peers, and draw the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gear_trt.bench.dependencies import require
from gear_trt.cli import _ui

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gear_trt.bench.model import ModelResult
    from gear_trt.bench.operator import PointResult
    from gear_trt.bench.records import AnyRow, Comparison, ModelRow, OperatorRow

SCHEMA = "gear.bench/1"
PEERS = "ort-fp32,ort-fp16,ort-int8,ort-int4"
CONFIGS = ("k4v4", "k4v4+rank=2", "k4v4+rank=2,outliers=2", "k2v2", "exact")
GIGA, MEGA, MILLI = 1e9, 1e6, 1e3
NOISE_CORES = 0.1
"""Use of the machine by others from which on a warning is due."""

app = typer.Typer(
    help="Time the attention operator and whole models beside ONNX Runtime and llama.cpp.",
    no_args_is_help=True,
)

Rounds = Annotated[
    int, typer.Option(min=1, help="Rounds that every candidate is timed in, after 2 to warm up.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="JSON lines file to append rows to, with machine, versions and commit."),
]
Compare = Annotated[
    Path | None, typer.Option(help="JSON lines file of an earlier run to compare with.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")]


@app.command()
def ops(
    heads: Annotated[
        list[str],
        typer.Option(help="Query heads / KV heads x head_dim; may be repeated."),
    ] = ["32/8x128"],  # noqa: B006 - typer copies it
    context: Annotated[
        str, typer.Option(help="Tokens that a sequence holds before the call; k is 1024.")
    ] = "1k,4k,16k",
    batch: Annotated[str, typer.Option(help="Sequences per call.")] = "1",
    new: Annotated[
        str, typer.Option(help="Tokens that a call appends to a sequence: 1 is decode.")
    ] = "1",
    threads: Annotated[str, typer.Option(help="CPU threads of a call.")] = "1",
    config: Annotated[
        list[str],
        typer.Option(help="Preset, with overrides after a +; may be repeated."),
    ] = list(CONFIGS),  # noqa: B006
    peers: Annotated[
        str, typer.Option(help="Caches of ONNX Runtime to run beside; an empty text runs none.")
    ] = PEERS,
    cpu: Annotated[
        str | None,
        typer.Option(
            help="Kernels to run each config with, for instance avx2,avx512.",
            show_default="the best of this machine",
        ),
    ] = None,
    c_abi: Annotated[
        bool, typer.Option("--c-abi", help="Time each config through the C interface as well.")
    ] = False,
    baseline: Annotated[str, typer.Option(help="Candidate that speedups refer to.")] = "ort-fp32",
    rounds: Rounds = 20,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Contexts 1k and 4k in 5 rounds: under a minute."),
    ] = False,
    out: Out = None,
    compare: Compare = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Time attention over compressed pages beside ONNX Runtime's GroupQueryAttention.

    Times are wall time per call, medians of rounds in which all candidates take turns. A decode
    call counts 1/chunk of a page's compression. Errors are normalized mean squared errors of the
    output to exact FP32 attention.
    """

    def action() -> None:
        require("onnxruntime")
        from gear_trt.bench import grid, operator, records
        from gear_trt.bench.group_query import PEERS as KNOWN

        plan = operator.OperatorPlan(
            points=grid.grid(
                [grid.parse_heads(item) for item in heads],
                grid.parse_counts("1k,4k" if quick else context, "--context", minimum=0),
                grid.parse_counts(batch, "--batch"),
                grid.parse_counts(new, "--new"),
                grid.parse_counts(threads, "--threads"),
            ),
            configs=[grid.parse_config(item) for item in config],
            peers=grid.parse_names(peers, "peer", KNOWN) if peers else (),
            instruction_sets=() if cpu is None else tuple(cpu.split(",")),
            c_abi=c_abi,
            rounds=5 if quick else rounds,
            baseline=baseline,
        )
        old = records.read_rows(compare) if compare else []
        if out:
            records.append_rows(out, [])
        results = []
        with _ui.progress_bar() as progress:
            for result in operator.run(plan, progress):
                results.append(result)
                if out:
                    records.append_rows(out, [row.model_dump() for row in result.rows])
        rows = [row for result in results for row in result.rows]
        refusals = {
            f"{name} at {result.point}": reason
            for result in results
            for name, reason in result.refusals.items()
        }
        if json:
            _print_json("ops", rows, refusals, records.compare(rows, old))
            return
        for result in results:
            _print_point(result)
        _print_comparison(records.compare(rows, old))

    _ui.run(action, json=json, verbose=verbose)


@app.command()
def model(
    engine: Annotated[Path, typer.Argument(help="Engine folder.", show_default=False)],
    context: Annotated[
        str,
        typer.Option(help="Tokens that the sequence holds after the last decoded one; k is 1024."),
    ] = "512,4k",
    tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Tokens to decode at each context: rounds of 5, the first warms up."
        ),
    ] = 80,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    gguf: Annotated[
        Path | None,
        typer.Option(
            help="The same model for llama.cpp (f16 cache with and without flash attention, q4_0 "
            "with); needs llama-cpp-python.",
            show_default="without llama.cpp",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Context 512 and 20 tokens: under a minute.")
    ] = False,
    out: Out = None,
    compare: Compare = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Time a whole model beside the same graph with ONNX Runtime's FP32 cache, and llama.cpp.

    Each candidate runs in a process of its own; contexts are filled by real prefill; decode takes
    turns, with an almost empty context between, so that the cost of the context is a difference.
    """

    def action() -> None:
        require("onnxruntime")
        from gear_trt.bench import grid, records
        from gear_trt.bench import model as benchmark

        plan = benchmark.ModelPlan(
            engine,
            contexts=grid.parse_counts("512" if quick else context, "--context"),
            tokens=20 if quick else tokens,
            threads=threads,
            gguf=gguf,
        )
        old = records.read_rows(compare) if compare else []
        if out:
            records.append_rows(out, [])
        with _ui.progress_bar() as progress:
            result = benchmark.run(plan, progress)
        if out:
            records.append_rows(out, [row.model_dump() for row in result.rows])
        comparisons = records.compare(result.rows, old)
        if json:
            _print_json("model", result.rows, result.refusals, comparisons)
            return
        _print_model(result)
        _print_comparison(comparisons)

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
    """Draw time against context and batch, tokens/s against context, and error against bytes."""

    def action() -> None:
        require("matplotlib")
        from gear_trt.bench import plot as drawing
        from gear_trt.bench.records import read_rows

        files = drawing.draw([row for path in rows for row in read_rows(path)], output)
        if json:
            _ui.emit_json(SCHEMA, {"benchmark": "plot", "files": [str(file) for file in files]})
            return
        for file in files:
            typer.echo(file)

    _ui.run(action, json=json, verbose=verbose)


def _print_json(
    benchmark: str,
    rows: Sequence[AnyRow],
    refusals: dict[str, str],
    comparisons: Sequence[Comparison],
) -> None:
    from gear_trt.bench.machine import environment

    _ui.emit_json(
        SCHEMA,
        {
            "benchmark": benchmark,
            "environment": environment(),
            "rows": [row.model_dump() for row in rows],
            "refusals": refusals,
            "comparison": [
                {
                    "place": list(item.row.place),
                    "old_seconds": item.old_seconds,
                    "speedup": item.speedup,
                }
                for item in comparisons
            ],
        },
    )


def _print_point(result: PointResult) -> None:
    from rich.table import Table

    table = Table(title=str(result.point), box=None, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("candidate", overflow="fold")
    for name in ("ms", "min", "± %", "faster", "GB/s", "max %", "B/tok", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(*_operator_cells(row))
    _ui.stdout.print(table, highlight=False)
    if result.rows:
        first = result.rows[0]
        _ui.stdout.print(
            f"faster: than {first.baseline or 'nothing, the baseline did not run'}; max %: of the "
            f"{first.stream_bytes_per_second / GIGA:.1f} GB/s that reading memory gives; caches "
            f"come from {first.cache_state}",
            highlight=False,
            soft_wrap=True,
        )
    _print_refusals(result.refusals)
    _warn_of_neighbours(result.rows)
    typer.echo()


def _operator_cells(row: OperatorRow) -> list[str]:
    form = row.cache.partition(" ")[2]
    return [
        f"{row.candidate} {form}".rstrip(),
        _milliseconds(row.seconds),
        _milliseconds(row.seconds_min),
        f"{100 * row.seconds_mad / row.seconds:.1f}",
        _times(row.speedup),
        f"{row.bytes_per_second / GIGA:.2f}",
        f"{100 * row.bytes_per_second / row.stream_bytes_per_second:.0f}",
        f"{row.bytes_per_token:.0f}",
        f"{row.nmse:.1e}",
    ]


def _print_model(result: ModelResult) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("candidate", overflow="fold")
    for name in (
        "context", "prefill/s", "decode/s", "± %", "faster", "ctx ms", "faster", "cache", "peak",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(*_model_cells(row))
    _ui.stdout.print(table, highlight=False)
    if result.rows:
        first = result.rows[0]
        _ui.stdout.print(
            f"threads: {first.threads}; prefill, decode: tokens/s; faster: than {first.baseline}; "
            "ctx ms: time per token beyond that at an almost empty context; cache, peak memory: MB",
            highlight=False,
            soft_wrap=True,
        )
    _print_refusals(result.refusals)
    _warn_of_neighbours(result.rows)


def _model_cells(row: ModelRow) -> list[str]:
    return [
        row.candidate,
        f"{row.context}",
        f"{row.prefill_tokens_per_second:.1f}",
        f"{row.decode_tokens_per_second:.2f}",
        f"{100 * row.seconds_mad / row.seconds:.1f}",
        _times(row.speedup),
        _milliseconds(row.seconds_of_context),
        _times(row.context_speedup),
        f"{row.cache_bytes / MEGA:.1f}",
        f"{row.peak_memory_bytes / MEGA:.0f}",
    ]


def _print_refusals(refusals: dict[str, str]) -> None:
    for name, reason in refusals.items():
        _ui.stdout.print(
            f"{name} did not run: {reason}", markup=False, highlight=False, soft_wrap=True
        )


def _warn_of_neighbours(rows: Sequence[AnyRow]) -> None:
    cores = max((row.other_cores for row in rows), default=0.0)
    if cores > NOISE_CORES:
        _ui.stderr.print(
            f"warning: other processes used {cores:.1f} cores meanwhile; they slow long calls more "
            "than short ones, so measure again when the machine is quiet",
            highlight=False,
            soft_wrap=True,
        )


def _print_comparison(comparisons: Sequence[Comparison]) -> None:
    from rich.table import Table

    if not comparisons:
        return
    table = Table(title="against the old rows", box=None, title_justify="left")
    table.add_column("candidate", overflow="fold")
    table.add_column("at", overflow="fold")
    for name in ("old ms", "new ms", "faster"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in comparisons:
        _, *where, candidate = item.row.place
        table.add_row(
            str(candidate),
            ", ".join(map(str, where)),
            _milliseconds(item.old_seconds),
            _milliseconds(item.row.seconds),
            _times(item.speedup),
        )
    _ui.stdout.print(table, highlight=False)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * MILLI:#.4g}".rstrip(".")


def _times(speedup: float | None) -> str:
    return "–" if speedup is None else f"{speedup:.2f}x"
