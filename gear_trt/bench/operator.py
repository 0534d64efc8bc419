"""The operator benchmark: attention over every kind of cache, at every point of a grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest

from gear_trt import native
from gear_trt.bench import gear_attention, group_query
from gear_trt.bench.bandwidth import stream_read_bandwidth
from gear_trt.bench.candidate import Candidate
from gear_trt.bench.gear_attention import C_ABI, ONNX_RUNTIME, GearAttention
from gear_trt.bench.grid import NamedConfig, Point
from gear_trt.bench.group_query import PEERS, GroupQueryAttention
from gear_trt.bench.machine import Neighbours, available_memory_bytes, cache_bytes
from gear_trt.bench.progress import Progress, Report, part_of, silent
from gear_trt.bench.records import OperatorRow
from gear_trt.bench.rounds import WARM_UP_ROUNDS, Timed, measure
from gear_trt.bench.statistics import Summary, speedup
from gear_trt.bench.tokens import Judge, Tokens, make_tokens
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.onnxruntime import FAILURES

MAXIMUM_ROUND_BYTES = 1 << 30
"""Copies are made until a round reads twice the last-level cache, or this much."""
MAXIMUM_COPIES = 64
TOKEN_ARRAYS = 4
"""Arrays of the size of all keys that exist at once, besides the caches."""
GIGA = 1e9


@dataclass(frozen=True)
class OperatorPlan:
    """What to measure.

    Attributes:
        points: The grid.
        configs: Compression configs.
        peers: Keys of `PEERS`.
        instruction_sets: Kernels to run each config with; empty leaves the machine's choice.
        c_abi: Time each config through the C ABI as well.
        rounds: Rounds at each point.
        baseline: Candidate that speedups refer to.
    """

    points: Sequence[Point]
    configs: Sequence[NamedConfig]
    peers: Sequence[str] = tuple(PEERS)
    instruction_sets: Sequence[str] = ()
    c_abi: bool = False
    rounds: int = 20
    baseline: str = "ort-fp32"


@dataclass(frozen=True)
class PointResult:
    """What one point gave.

    Attributes:
        point: Where.
        rows: One per candidate; of a candidate with several forms the fastest.
        refusals: Why candidates could not run here, by name.
    """

    point: Point
    rows: list[OperatorRow]
    refusals: dict[str, str]


@dataclass(frozen=True)
class _Entry:
    """A candidate that is not made yet: making it fills its caches."""

    name: str
    state_bytes: Callable[[Point], int]
    make: Callable[..., Candidate]


@dataclass(frozen=True)
class _Filled:
    """Candidates of a point, the errors of their outputs, and the ones that refused."""

    candidates: list[Candidate] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)


def run(plan: OperatorPlan, progress: Progress = silent) -> Iterator[PointResult]:
    """Measure point by point.

    Args:
        plan: What to measure.
        progress: Told what happens.

    Yields:
        The result of each point, as soon as it is there.

    Raises:
        GearError: `BAD_REQUEST` for a baseline that does not take part, an instruction set that
            this machine lacks, or too little memory; `MISSING_LIBRARY`.
    """
    entries = list(_entries(plan))
    _check(plan, entries)
    chosen = native.instruction_set()
    progress("measuring how fast memory is read", "", 0.0)
    streams = {
        threads: stream_read_bandwidth(threads)
        for threads in dict.fromkeys(point.threads for point in plan.points)
    }
    try:
        for index, point in enumerate(plan.points):
            report = part_of(progress, str(point), index, len(plan.points))
            yield _measure_point(plan, entries, point, streams[point.threads], report)
    finally:
        native.use_instruction_set(chosen)


def _entries(plan: OperatorPlan) -> Iterator[_Entry]:
    hosts = (ONNX_RUNTIME, C_ABI) if plan.c_abi else (ONNX_RUNTIME,)
    for named in plan.configs:
        for instruction_set in plan.instruction_sets or (None,):
            for host in hosts:
                name = f"gear {named.name}"
                name += f" {instruction_set}" if instruction_set else ""
                name += " (C ABI)" if host == C_ABI else ""
                yield _Entry(
                    name,
                    partial(gear_attention.state_bytes, config=named.config),
                    partial(
                        GearAttention,
                        name=name,
                        named=named,
                        host=host,
                        instruction_set=instruction_set,
                    ),
                )
    for peer in plan.peers:
        for storage in PEERS[peer]:
            yield _Entry(
                peer,
                partial(group_query.state_bytes, storage=storage),
                partial(GroupQueryAttention, name=peer, storage=storage),
            )


def _check(plan: OperatorPlan, entries: Sequence[_Entry]) -> None:
    names = list(dict.fromkeys(entry.name for entry in entries))
    if plan.baseline not in names:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"the baseline '{plan.baseline}' does not take part",
            hint=f"choose among: {', '.join(names)}",
        )
    available = native.build_info()["instruction_sets"]
    for name in plan.instruction_sets:
        if name not in available:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"this machine cannot run the kernels for '{name}'",
                hint=f"choose among: {', '.join(available)}",
            )
    for point in plan.points:
        if point.new_tokens == 1 and point.context == 0:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                "decode needs a context of 1 token or more",
                hint="--context 0 goes with --new",
            )
        _check_memory(point, entries)


def _check_memory(point: Point, entries: Sequence[_Entry]) -> None:
    heads = point.heads
    keys = point.batch * point.tokens * heads.num_kv_heads * heads.head_dim * 4
    states = sum(
        entry.state_bytes(point) * copies
        for entry, copies in zip(entries, _copies(point, entries), strict=True)
    )
    needed, available = TOKEN_ARRAYS * keys + states, available_memory_bytes()
    if needed > available:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{point}: needs {needed / GIGA:.1f} GB of memory, {available / GIGA:.1f} GB are free",
            hint="choose a smaller context or batch, or fewer configs",
        )


def _copies(point: Point, entries: Sequence[_Entry]) -> list[int]:
    """Copies of each candidate's cache: enough that a round reads more than the caches hold.

    One for prompts, which compute for long and read little.
    """
    if point.new_tokens > 1:
        return [1] * len(entries)
    share = min(2 * cache_bytes(3), MAXIMUM_ROUND_BYTES) / len(entries)
    return [
        min(max(1, round(share / entry.state_bytes(point))), MAXIMUM_COPIES) for entry in entries
    ]


def _measure_point(
    plan: OperatorPlan, entries: Sequence[_Entry], point: Point, stream: float, report: Report
) -> PointResult:
    report("drawing tokens", 0.0)
    filled = _fill(entries, make_tokens(point), point, report)
    timed = _in_turns(filled.candidates)
    rounds_done = 0

    def advance() -> None:
        nonlocal rounds_done
        rounds_done += 1
        total = WARM_UP_ROUNDS + plan.rounds
        report(f"round {rounds_done} of {total}", rounds_done / total)

    neighbours = Neighbours(time.process_time())
    times = measure(timed, rounds=plan.rounds, advance=advance) if timed else {}
    other_cores = neighbours.cores(time.process_time())
    round_bytes = sum(
        candidate.read_bytes * calls.copies
        for candidate in filled.candidates
        for calls in candidate.timed()
    )
    series = [candidate.seconds(times) for candidate in filled.candidates]
    forms = _forms(filled.candidates, series)
    baseline = forms.get(plan.baseline)
    rows = [
        _row(
            point,
            filled.candidates[fastest],
            times,
            nmse=filled.errors[fastest],
            stream_bytes_per_second=stream,
            round_bytes=round_bytes,
            other_cores=other_cores,
            baseline=None if baseline is None else plan.baseline,
            speedup=None if baseline is None else speedup(series[fastest], series[baseline[0]]),
            slower_forms={
                filled.candidates[index].facts.cache: Summary.of(series[index]).median
                for index in slower
            },
        )
        for fastest, *slower in forms.values()
    ]
    return PointResult(point, rows, filled.refusals)


def _fill(entries: Sequence[_Entry], tokens: Tokens, point: Point, report: Report) -> _Filled:
    filled = _Filled()
    judge = Judge(tokens)
    for entry, copies in zip(entries, _copies(point, entries), strict=True):
        report(f"filling the cache of {entry.name}", 0.0)
        try:
            candidate = entry.make(tokens, point, copies=copies)
            filled.errors.append(judge.error(candidate.output()))
        except FAILURES as error:
            filled.refusals[entry.name] = str(error).rpartition("Status Message: ")[2]
        else:
            filled.candidates.append(candidate)
    return filled


def _in_turns(candidates: Sequence[Candidate]) -> list[Timed]:
    """First calls of every candidate's first kind, then of the second: a copy rests in between."""
    kinds = zip_longest(*(candidate.timed() for candidate in candidates))
    return [timed for kind in kinds for timed in kind if timed is not None]


def _forms(
    candidates: Sequence[Candidate], series: Sequence[Sequence[float]]
) -> dict[str, list[int]]:
    """Indices of the forms of each candidate by name, fastest first."""
    forms: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        forms.setdefault(candidate.facts.name, []).append(index)
    for indices in forms.values():
        indices.sort(key=lambda index: Summary.of(series[index]).median)
    return forms


def _row(
    point: Point,
    candidate: Candidate,
    times: dict[str, list[float]],
    *,
    nmse: float,
    stream_bytes_per_second: float,
    round_bytes: int,
    other_cores: float,
    baseline: str | None,
    speedup: float | None,
    slower_forms: dict[str, float],
) -> OperatorRow:
    summary = Summary.of(candidate.seconds(times))
    facts = candidate.facts
    return OperatorRow(
        candidate=facts.name,
        engine=facts.engine,
        host=facts.host,
        cache=facts.cache,
        config=facts.config,
        instruction_set=facts.instruction_set,
        heads=str(point.heads),
        context=point.context,
        batch=point.batch,
        new_tokens=point.new_tokens,
        threads=point.threads,
        seconds=summary.median,
        seconds_min=summary.minimum,
        seconds_mad=summary.mad,
        rounds=summary.rounds,
        baseline=baseline,
        speedup=speedup,
        bytes_per_token=candidate.bytes_per_token,
        other_cores=other_cores,
        nmse=nmse,
        read_bytes=candidate.read_bytes,
        bytes_per_second=candidate.read_bytes / summary.median,
        stream_bytes_per_second=stream_bytes_per_second,
        compression_share=candidate.compression_share(times),
        copies=candidate.timed()[0].copies,
        round_bytes=round_bytes,
        cache_state=_cache_state(round_bytes),
        slower_forms=slower_forms,
    )


def _cache_state(round_bytes: int) -> str:
    """Where a call finds its cache, from what was read since its last call."""
    if not cache_bytes(3):
        return "unknown"
    if round_bytes > cache_bytes(3):
        return "memory"
    return "L3" if round_bytes > cache_bytes(2) else "L2"
