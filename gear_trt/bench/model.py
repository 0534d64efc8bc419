"""The whole-model benchmark: prefill and decode of one engine beside other caches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from gear_trt.bench.compression import compression_seconds_per_token
from gear_trt.bench.decoders import (
    GEAR,
    LLAMA_PEERS,
    ORT_FP32,
    DecoderSpec,
    bytes_per_token,
    cache_name,
    candidate_name,
    engine_name,
)
from gear_trt.bench.machine import Neighbours
from gear_trt.bench.progress import Progress, Report, part_of, silent
from gear_trt.bench.records import ModelRow
from gear_trt.bench.statistics import Summary, median_difference, speedup
from gear_trt.bench.worker import Usage, Worker
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.manifest import Manifest

TOKENS_PER_ROUND = 5
"""The first one is not timed: it brings the weights back that other candidates have displaced."""


@dataclass(frozen=True)
class ModelPlan:
    """What to measure.

    Attributes:
        engine: Engine folder.
        contexts: Tokens that the sequence holds after the last decoded one.
        tokens: Tokens to decode at each context.
        threads: CPU threads.
        gguf: The same model for llama.cpp; None goes without.
    """

    engine: Path
    contexts: Sequence[int]
    tokens: int = 80
    threads: int = 1
    gguf: Path | None = None

    @property
    def rounds(self) -> int:
        """Turns that each candidate has at a context."""
        return self.tokens // TOKENS_PER_ROUND

    @property
    def candidates(self) -> list[str]:
        """Names, ours first."""
        return [GEAR, ORT_FP32, *(LLAMA_PEERS if self.gguf else ())]


@dataclass(frozen=True)
class ModelResult:
    """What a run gave.

    Attributes:
        rows: One per context and candidate.
        refusals: Why candidates could not run, by name.
    """

    rows: list[ModelRow]
    refusals: dict[str, str]


@dataclass
class _Series:
    """Seconds of one candidate at one context, one value a round."""

    prefill: float
    at_context: list[float] = field(default_factory=list)
    empty: list[float] = field(default_factory=list)

    @property
    def of_context(self) -> float:
        return median_difference(self.at_context, self.empty)


def run(plan: ModelPlan, progress: Progress = silent) -> ModelResult:
    """Measure every candidate in a process of its own, in turns.

    Args:
        plan: What to measure.
        progress: Told what happens.

    Raises:
        GearError: `MISSING_FILE`, `DAMAGED_ENGINE`, `LAYOUT_MISMATCH`, `MISSING_DEPENDENCY`, or
            `MISSING_LIBRARY`; `BAD_REQUEST` for contexts that do not fit.
    """
    manifest = Manifest.read(plan.engine)
    _check(plan, manifest)
    rows: list[ModelRow] = []
    with ExitStack() as stack:
        workers, refusals = _open_workers(plan, stack, progress)
        for index, context in enumerate(plan.contexts):
            report = part_of(progress, f"context {context}", index, len(plan.contexts))
            neighbours = Neighbours(_cpu_seconds(workers))
            series = _measure(plan, workers, context, report)
            other_cores = neighbours.cores(_cpu_seconds(workers))
            rows += [
                _row(plan, manifest, name, context, series, worker.usage(), other_cores)
                for name, worker in workers.items()
            ]
    return ModelResult(rows, refusals)


def _check(plan: ModelPlan, manifest: Manifest) -> None:
    longest = manifest.model.max_context
    for context in plan.contexts:
        if not plan.tokens < context <= longest:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"the context is {context}",
                hint=f"it must be more than the {plan.tokens} tokens decoded at its end, and at "
                f"most the {longest} of this model",
            )
    if plan.tokens < TOKENS_PER_ROUND:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{plan.tokens} tokens are too few to decode",
            hint=f"a round decodes {TOKENS_PER_ROUND}",
        )
    if plan.gguf is not None and not plan.gguf.is_file():
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"there is no file {plan.gguf}",
            hint="pass the GGUF file that the engine was exported from",
        )


def _open_workers(
    plan: ModelPlan, stack: ExitStack, progress: Progress
) -> tuple[dict[str, Worker], dict[str, str]]:
    workers: dict[str, Worker] = {}
    refusals: dict[str, str] = {}
    for name in plan.candidates:
        progress(f"loading {name}", "", 0.0)
        spec = DecoderSpec(name, plan.engine, plan.gguf, max(plan.contexts), plan.threads)
        try:
            workers[name] = stack.enter_context(Worker(spec))
        except GearError as error:
            if name not in LLAMA_PEERS:
                raise
            refusals[name] = f"{error.message}: {error.hint}"
    return workers, refusals


def _measure(
    plan: ModelPlan, workers: dict[str, Worker], context: int, report: Report
) -> dict[str, _Series]:
    """Fill every cache, then decode in turns at this context and at an empty one."""
    series: dict[str, _Series] = {}
    steps = len(workers) + plan.rounds
    for name, worker in workers.items():
        report(f"prefill with {name}", len(series) / steps)
        series[name] = _Series(worker.fill(context - plan.rounds * TOKENS_PER_ROUND))
    for turn in range(plan.rounds):
        report(f"decoding, round {turn + 1} of {plan.rounds}", (len(workers) + turn) / steps)
        for name, worker in workers.items():
            series[name].at_context.append(median(worker.decode(TOKENS_PER_ROUND)[1:]))
            series[name].empty.append(median(worker.decode_empty(TOKENS_PER_ROUND)[1:]))
    return series


def _cpu_seconds(workers: dict[str, Worker]) -> float:
    return time.process_time() + sum(worker.usage().cpu_seconds for worker in workers.values())


def _row(
    plan: ModelPlan,
    manifest: Manifest,
    name: str,
    context: int,
    series: dict[str, _Series],
    usage: Usage,
    other_cores: float,
) -> ModelRow:
    own, baseline = series[name], series[ORT_FP32]
    summary = Summary.of(own.at_context)
    filled = context - plan.rounds * TOKENS_PER_ROUND
    is_gear = name == GEAR
    compression = compression_seconds_per_token(manifest.layers) if is_gear else None
    return ModelRow(
        candidate=candidate_name(name, manifest),
        engine=engine_name(name),
        cache=cache_name(name, manifest),
        config=manifest.layers[0].config.model_dump() if is_gear else None,
        model=manifest.model.source,
        context=context,
        threads=plan.threads,
        tokens=plan.rounds * TOKENS_PER_ROUND,
        seconds=summary.median,
        seconds_min=summary.minimum,
        seconds_mad=summary.mad,
        rounds=summary.rounds,
        baseline=ORT_FP32,
        speedup=speedup(own.at_context, baseline.at_context),
        prefill_tokens_per_second=filled / own.prefill,
        decode_tokens_per_second=1 / summary.median,
        seconds_empty=median(own.empty),
        seconds_of_context=own.of_context,
        context_speedup=_quotient(baseline.of_context, own.of_context),
        bytes_per_token=bytes_per_token(name, manifest),
        other_cores=other_cores,
        cache_bytes=usage.cache_bytes,
        peak_memory_bytes=usage.peak_memory_bytes,
        compression_share=None if compression is None else compression / summary.median,
        prefill_compression_share=None
        if compression is None
        else compression * filled / own.prefill,
    )


def _quotient(baseline: float, own: float) -> float | None:
    """How many times smaller; None where noise has swallowed one of them."""
    return baseline / own if min(baseline, own) > 0 else None
