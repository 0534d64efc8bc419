"""Rows of benchmarks: JSON lines that say what was measured, where, and with which versions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from gear_trt.bench.machine import environment
from gear_trt.errors import ErrorCode, GearError

OPERATOR = "ops"
MODEL = "model"

_Kind = TypeVar("_Kind", bound=BaseModel)


class Row(BaseModel):
    """What rows of both benchmarks have in common: a candidate and its time at one place.

    Attributes:
        candidate: Name, unique within a run.
        engine: What ran: `gear`, `onnxruntime` or `llama.cpp`.
        cache: How keys and values were stored.
        config: Fields of the compression config; None for peers.
        context: Tokens of each sequence: held before the call (ops), or after the last token
            (model).
        threads: CPU threads.
        seconds: Median over the rounds of the wall time of a call (ops) or decoded token (model).
        seconds_min: Smallest of them.
        seconds_mad: Their median absolute deviation.
        rounds: Rounds measured.
        baseline: Candidate that `speedup` refers to; None where it did not run here.
        speedup: How many times faster than the baseline, median of the rounds' ratios.
        bytes_per_token: Bytes of one token in the cache, all KV heads, K and V; one layer (ops) or
            all of them (model).
        other_cores: Cores that other processes used meanwhile, on average.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # the environment is beside the fields

    candidate: str
    engine: str
    cache: str
    config: dict[str, int] | None
    context: int
    threads: int
    seconds: float
    seconds_min: float
    seconds_mad: float
    rounds: int
    baseline: str | None
    speedup: float | None
    bytes_per_token: float
    other_cores: float


class OperatorRow(Row):
    """One candidate at one point of the operator benchmark.

    Attributes:
        benchmark: `ops`.
        host: What calls the kernels: `onnxruntime` or `c-abi`.
        instruction_set: Of our kernels; None for peers, which choose for themselves.
        heads: N/HxD.
        batch: B, sequences.
        new_tokens: S: 1 is decode, more is prefill.
        nmse: Normalized mean squared error of the output to exact FP32 attention.
        read_bytes: Bytes of cache that a call reads.
        bytes_per_second: `read_bytes` per `seconds`.
        stream_bytes_per_second: What this machine reads at most with so many threads.
        compression_share: Part of `seconds` that goes into compressing pages; decode of gear only.
        copies: Independent copies of the cache, called in turn.
        round_bytes: Bytes of cache that all candidates read between two calls of one copy.
        cache_state: Where a call finds its cache, from `round_bytes`: `memory`, `L3` or `L2`.
        slower_forms: Seconds of the peer's other forms, of which this row is the fastest.
    """

    benchmark: str = OPERATOR
    host: str
    instruction_set: str | None
    heads: str
    batch: int
    new_tokens: int
    nmse: float
    read_bytes: int
    bytes_per_second: float
    stream_bytes_per_second: float
    compression_share: float | None
    copies: int
    round_bytes: int
    cache_state: str
    slower_forms: dict[str, float]

    @property
    def place(self) -> tuple[object, ...]:
        """What must be equal for two rows to be compared, and the candidate."""
        return (
            OPERATOR,
            self.heads,
            self.context,
            self.batch,
            self.new_tokens,
            self.threads,
            self.candidate,
        )


class ModelRow(Row):
    """One candidate at one context of the whole-model benchmark.

    Attributes:
        benchmark: `model`.
        model: Source of the engine.
        tokens: Tokens decoded.
        prefill_tokens_per_second: Rate at which the context was filled.
        decode_tokens_per_second: Tokens per second at this context.
        seconds_empty: Median seconds per token at a context of almost nothing.
        seconds_of_context: Seconds per token beyond those, median of the rounds' differences: what
            the context costs.
        context_speedup: How many times smaller than the baseline's `seconds_of_context`; None where
            one of them is lost in noise.
        cache_bytes: Bytes of the cache at this context, buffers included.
        peak_memory_bytes: Largest resident size of the candidate's process so far.
        compression_share: Part of decode that goes into compressing pages, on one thread; gear
            only.
        prefill_compression_share: Likewise of prefill.
    """

    benchmark: str = MODEL
    model: str
    tokens: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    seconds_empty: float
    seconds_of_context: float
    context_speedup: float | None
    cache_bytes: int
    peak_memory_bytes: int
    compression_share: float | None
    prefill_compression_share: float | None

    @property
    def place(self) -> tuple[object, ...]:
        """What must be equal for two rows to be compared, and the candidate."""
        return (MODEL, self.model, self.context, self.threads, self.candidate)


AnyRow = OperatorRow | ModelRow
_KINDS: dict[object, type[OperatorRow] | type[ModelRow]] = {OPERATOR: OperatorRow, MODEL: ModelRow}


class Comparison(BaseModel):
    """A row beside the newest old row of the same place.

    Attributes:
        row: The new row.
        old_seconds: Time of the old one.
        speedup: How many times faster the new one is.
    """

    row: AnyRow
    old_seconds: float
    speedup: float


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a JSON lines file, each as soon as it is there, with the environment.

    Raises:
        OSError: The file cannot be written.
    """
    shared = environment()
    with path.open("a", encoding="utf-8", buffering=1) as file:  # by lines
        for row in rows:
            file.write(json.dumps({**row, **shared}) + "\n")


def read_rows(path: Path) -> list[AnyRow]:
    """Read the rows of both benchmarks from a JSON lines file; rows of other kinds are left out.

    Raises:
        GearError: `BAD_REQUEST`, naming the line that is no row.
        OSError: The file cannot be read.
    """
    return read_kinds(path, _KINDS, command="gear bench")


def read_kinds(path: Path, kinds: Mapping[object, type[_Kind]], *, command: str) -> list[_Kind]:
    """Read the rows of some kinds from a JSON lines file; rows of other kinds are left out.

    Args:
        path: The file.
        kinds: The class of a row, by its `benchmark`.
        command: What writes such rows, for messages.

    Raises:
        GearError: `BAD_REQUEST`, naming the line that is no row.
        OSError: The file cannot be read.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            kind = kinds.get(fields.get("benchmark"))
            if kind is not None:
                rows.append(kind.model_validate(fields))
        except (ValueError, AttributeError, ValidationError) as error:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"{path}, line {number}, is not a row of `{command}`",
                hint=f"pass a file that `{command} --out` wrote",
                detail=str(error),
            ) from None
    return rows


def compare(rows: Sequence[AnyRow], old_rows: Sequence[AnyRow]) -> list[Comparison]:
    """Put each row beside the newest old row of the same place; rows without one are left out."""
    old = {row.place: row for row in old_rows}  # later lines replace earlier ones
    return [
        Comparison(
            row=row,
            old_seconds=old[row.place].seconds,
            speedup=old[row.place].seconds / row.seconds,
        )
        for row in rows
        if row.place in old
    ]
