"""Every target of the CPU back end, measured in one run, recorded, drawn and checked.

    python -m benchmarks.cpu_targets [ENGINE] [--gguf FILE]

Takes about half an hour on two quiet cores. Rows go to `benchmarks/results/cpu.jsonl`, pictures to
`docs/benchmarks/`, numbers into `docs/benchmarks.md`. Exit status 1 says that a target was missed
or could not be measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import demo, report
from benchmarks.records import append_rows
from gear_trt import native
from gear_trt.bench import model, operator, plot
from gear_trt.bench.grid import Heads, Point, grid, parse_config
from gear_trt.bench.operator import OperatorPlan
from gear_trt.bench.progress import Progress as Told
from gear_trt.bench.records import AnyRow, ModelRow, OperatorRow
from gear_trt.runtime.cache import GearCache
from gear_trt.runtime.manifest import Manifest

RECORD = "cpu"
LARGE, SMALL = Heads(32, 8, 128), Heads(9, 3, 64)
"""Attention layers of an 8B Llama and of SmolLM2-135M."""
PLAIN, RANK, OUTLIERS, TWO_BITS = "k4v4", "k4v4+rank=2", "k4v4+rank=2,outliers=2", "k2v2"
CONTEXTS = (1024, 4096, 16384, 32768)
BATCHES, BATCH_CONTEXT = (1, 2, 4, 8), 2048
PROMPTS = (512, 4096)
SHORT, LONG = 512, 8192
"""Contexts of the whole model, tokens."""
RESIDENT_TOKENS = 4096


@dataclass(frozen=True)
class Measured:
    """All rows of the run.

    Attributes:
        rows: Of both benchmarks.
        resident_ratio: Resident bytes of a filled cache per byte of its pages and buffers.
    """

    rows: Sequence[AnyRow]
    resident_ratio: float

    def operator(
        self,
        candidate: str,
        heads: Heads,
        context: int,
        *,
        batch: int = 1,
        new: int = 1,
        threads: int = 1,
    ) -> OperatorRow:
        """Return the newest row of a place.

        Raises:
            LookupError: It was not measured.
        """
        place = ("ops", str(heads), context, batch, new, threads, candidate)
        row = self._find(place)
        assert isinstance(row, OperatorRow)  # noqa: S101 - the place says so
        return row

    def model(self, prefix: str, context: int) -> ModelRow:
        """Return the newest row of a candidate whose name starts so.

        Raises:
            LookupError: It was not measured.
        """
        for row in reversed(self.rows):
            if not isinstance(row, ModelRow) or row.context != context:
                continue
            if row.candidate.startswith(prefix):
                return row
        raise LookupError(prefix)

    def _find(self, place: tuple[object, ...]) -> AnyRow:
        for row in reversed(self.rows):
            if row.place == place:
                return row
        raise LookupError(str(place))


@dataclass(frozen=True)
class Target:
    """One promise.

    Attributes:
        what: In words, with its unit.
        bound: What the value must reach.
        value: Takes it from the rows; a LookupError says that it was not measured.
        is_most: The bound is the largest value allowed, not the smallest.
    """

    what: str
    bound: float
    value: Callable[[Measured], float]
    is_most: bool = False

    def is_met(self, value: float) -> bool:
        """Whether a value keeps the promise."""
        return value <= self.bound if self.is_most else value >= self.bound


def targets() -> Iterator[Target]:
    """Yield every target."""
    yield from _decode_targets()
    yield from _shape_targets()
    yield from _model_targets()


def _decode_targets() -> Iterator[Target]:
    for threads in (1, 2):
        for context in (4096, 16384):
            where = f"{LARGE}, {context} tokens, {threads} threads"
            for config, peer, bound in (
                (RANK, "ort-fp32", 8.0),
                (RANK, "ort-int8", 5.0),
                (OUTLIERS, "ort-fp32", 6.0),
            ):
                yield Target(
                    f"{config}: times faster than {peer} ({where})",
                    bound,
                    _times_faster(f"gear {config}", peer, LARGE, context, threads=threads),
                )
            yield Target(
                f"2-bit: times faster than 4-bit ({where})",
                1.0,
                _times_faster(f"gear {TWO_BITS}", f"gear {PLAIN}", LARGE, context, threads=threads),
            )
    for context in (4096, 16384):
        yield Target(
            f"{RANK}: times faster than ort-fp32 ({SMALL}, {context} tokens)",
            5.0,
            _times_faster(f"gear {RANK}", "ort-fp32", SMALL, context),
        )
    yield Target(
        f"{RANK}, AVX2 forced: times faster than ort-fp32 ({LARGE}, 4096 tokens)",
        2.0,
        _times_faster(f"gear {RANK} avx2", "ort-fp32", LARGE, 4096),
    )


def _shape_targets() -> Iterator[Target]:
    ours = f"gear {RANK}"
    for context in (4096, 16384):

        def scaling(measured: Measured, context: int = context) -> float:
            one, two = (
                measured.operator(ours, LARGE, context, threads=threads) for threads in (1, 2)
            )
            return one.seconds / two.seconds

        yield Target(f"{RANK}: two threads over one ({LARGE}, {context} tokens)", 1.7, scaling)
    for new in PROMPTS:
        yield Target(
            f"{RANK}: times faster than ort-fp32, prefill of {new} ({LARGE})",
            0.8,
            _times_faster(ours, "ort-fp32", LARGE, 0, new=new),
        )
    yield Target(
        f"{RANK}: time per token of context, 32k over 4k ({LARGE})",
        1.2,
        lambda measured: (
            measured.operator(ours, LARGE, 32768).seconds
            / measured.operator(ours, LARGE, 4096).seconds
            / (32768 / 4096)
        ),
        is_most=True,
    )
    yield Target(
        f"{RANK}: time per sequence, batch 8 over 1 ({LARGE}, {BATCH_CONTEXT} tokens)",
        1.2,
        lambda measured: (
            measured.operator(ours, LARGE, BATCH_CONTEXT, batch=8).seconds
            / measured.operator(ours, LARGE, BATCH_CONTEXT).seconds
            / 8
        ),
        is_most=True,
    )


def _model_targets() -> Iterator[Target]:
    yield Target(
        f"model, {LONG} tokens: decode, times faster than ort-fp32",
        1.5,
        lambda measured: _known(measured.model("gear", LONG).speedup),
    )
    yield Target(
        f"model, {SHORT} tokens: decode, times faster than ort-fp32",
        0.95,
        lambda measured: _known(measured.model("gear", SHORT).speedup),
    )
    yield Target(
        f"model, {LONG} tokens: times less time for the context than llama.cpp, q4_0",
        1.0,
        lambda measured: (
            _known(measured.model("gear", LONG).context_speedup)
            / _known(measured.model("llama-q4_0", LONG).context_speedup)
        ),
    )
    for context in (SHORT, LONG):
        for name, field, bound in (
            ("decode", "compression_share", 0.03),
            ("prefill", "prefill_compression_share", 0.10),
        ):

            def share(measured: Measured, context: int = context, field: str = field) -> float:
                return _known(getattr(measured.model("gear", context), field))

            what = f"model, {context} tokens: part of {name} that compression takes"
            yield Target(what, bound, share, is_most=True)
    yield Target(
        "resident bytes of the cache, off pages and buffers by",
        0.05,
        lambda measured: abs(measured.resident_ratio - 1),
        is_most=True,
    )


def _times_faster(
    candidate: str, peer: str, heads: Heads, context: int, **where: int
) -> Callable[[Measured], float]:
    """Ratio of the speedups over the baseline, which every run has measured beside both."""
    return lambda measured: (
        _known(measured.operator(candidate, heads, context, **where).speedup)
        / _known(measured.operator(peer, heads, context, **where).speedup)
    )


def _known(value: float | None) -> float:
    if value is None:
        raise LookupError
    return value


def operator_plans() -> Iterator[OperatorPlan]:
    """Yield the grids that the targets speak of."""
    configs = [parse_config(name) for name in (PLAIN, RANK, OUTLIERS, TWO_BITS, "exact")]
    rank = [parse_config(RANK)]
    yield OperatorPlan(grid([LARGE], [BATCH_CONTEXT], BATCHES, [1], [1]), rank, peers=("ort-fp32",))
    yield OperatorPlan(grid([LARGE], CONTEXTS, [1], [1], [1, 2]), configs)
    yield OperatorPlan(grid([SMALL], CONTEXTS, [1], [1], [1, 2]), configs)
    yield OperatorPlan(
        [Point(LARGE, 4096, 1, 1, 1)], rank, peers=("ort-fp32",), instruction_sets=("avx2",)
    )
    yield OperatorPlan(
        grid([LARGE, SMALL], [0], [1], PROMPTS, [1]), rank, peers=("ort-fp32",), rounds=7
    )


def resident_ratio(engine: Path) -> float:
    """Fill half of a model's cache in a process of its own.

    Returns:
        Bytes by which the process grew, per byte of pages in use and buffers.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_resident_ratio, (engine,))


def _resident_ratio(engine: Path) -> float:
    layers = Manifest.read(engine).layers
    rng = np.random.default_rng(0)
    past, new = np.zeros(1, np.int32), np.full(1, RESIDENT_TOKENS, np.int32)
    tokens = [
        rng.standard_normal(
            (1, RESIDENT_TOKENS, layers[0].num_kv_heads, layers[0].head_dim), np.float32
        )
        for _ in range(2)
    ]
    output = np.zeros_like(tokens[0])

    def fill(cache: GearCache) -> None:
        for pool, rows, layer in zip(
            cache.page_pools, cache.residual_buffers, cache.layers, strict=True
        ):
            native.attention(
                tokens[0], *tokens, page_pool=pool, residual_buffer=rows,  # type: ignore[arg-type]
                page_table=cache.page_table, slots=cache.slots, past_lengths=past,
                new_lengths=new, config=layer.config, scale=1.0, sliding_window=1, out=output,
            )  # fmt: skip
        cache.lengths += new

    fill(GearCache(layers[:1], batch=1, max_tokens=RESIDENT_TOKENS))  # the kernels' own memory
    before = _resident_bytes()
    cache = GearCache(layers, batch=1, max_tokens=2 * RESIDENT_TOKENS)
    fill(cache)
    return (_resident_bytes() - before) / cache.nbytes


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def measure(engine: Path, gguf: Path | None, told: Told) -> Measured:
    """Run everything, recording rows as they come."""
    rows: list[AnyRow] = []
    for plan in operator_plans():
        for result in operator.run(plan, told):
            append_rows(RECORD, [row.model_dump() for row in result.rows])
            rows += result.rows
    whole = model.run(model.ModelPlan(engine, [SHORT, LONG], gguf=gguf), told)
    append_rows(RECORD, [row.model_dump() for row in whole.rows])
    return Measured([*rows, *whole.rows], resident_ratio(engine))


def judge(measured: Measured) -> list[dict[str, object]]:
    """Return one record per target."""
    records: list[dict[str, object]] = []
    for target in targets():
        try:
            value: float | None = target.value(measured)
        except LookupError:
            value = None
        records.append(
            {
                "benchmark": report.TARGET,
                "what": target.what,
                "bound": target.bound,
                "is_most": target.is_most,
                "value": value,
                "is_met": value is not None and target.is_met(value),
            }
        )
    return records


def table(records: Sequence[dict[str, object]]) -> Table:
    """Return the verdicts."""
    verdicts = Table("target", "must be", "is", "", box=None)
    for record in records:
        value = record["value"]
        verdicts.add_row(
            str(record["what"]),
            f"{'≤' if record['is_most'] else '≥'} {record['bound']:g}",
            "not measured" if value is None else f"{value:.3g}",
            "[green]met[/]" if record["is_met"] else "[red]missed[/]",
        )
    return verdicts


def main() -> int:
    """Measure, record, draw, check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path, nargs="?", default=demo.ENGINE)
    parser.add_argument("--gguf", type=Path, help="file for llama.cpp; default: the demo's")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    if arguments.engine == demo.ENGINE:
        demo.export(console)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)
        measured = measure(
            arguments.engine,
            arguments.gguf or demo.model_path(),
            lambda stage, detail, done: bar.update(
                task, completed=done, description=f"{stage}: {detail}"
            ),
        )
    records = judge(measured)
    append_rows(RECORD, records)
    plot.draw(measured.rows, report.PICTURES)
    report.write()
    Console().print(table(records))
    return 0 if all(record["is_met"] for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
