"""The paged cache and the scheduler on a real model: room, sharing, and many streams.

    python -m benchmarks.serving [ENGINE] [--minutes M] [--part PART ...]

Rows go to `benchmarks/results/serving.jsonl`. Exit status 1 says that a promise was not kept.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import demo
from benchmarks.records import append_rows
from benchmarks.report import TARGET
from gear_trt.bench.machine import Neighbours, peak_memory_bytes
from gear_trt.errors import GearError
from gear_trt.reference.cache import num_pages
from gear_trt.runtime.footprint import buffer_bytes, fp16_bytes_per_token, page_bytes
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.runtime.model import Model
from gear_trt.runtime.options import GenerationOptions
from gear_trt.runtime.paged_cache import PagedCache, PagedSequence
from gear_trt.runtime.paged_engine import PagedEngine
from gear_trt.runtime.token_plan import TokenPlan
from gear_trt.serving import Scheduler

RECORD = "serving"
THREADS = 2
SEED = 0
CONTEXT = 2048
"""Tokens of a sequence, where room is measured, and of a common prompt."""
FP16_SEQUENCES = 5
"""Sequences of CONTEXT tokens that an FP16 cache holds in the budget."""
SHARERS = 16
STREAMS = 64
NEW_TOKENS = 64
QUESTION_WORDS = 40
CACHE_BYTES = 400_000_000
CHECKED = 8
"""Answers of the streams that are computed again one at a time."""
DOCUMENTS = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))

Record = dict[str, Any]


@dataclass(frozen=True)
class Promise:
    """What a value must reach: at least `bound`, or at most where `is_most`."""

    what: str
    bound: float
    value: float
    is_most: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether the value does."""
        return self.value <= self.bound if self.is_most else self.value >= self.bound

    def record(self) -> Record:
        """Return the row of the verdict."""
        return {
            "benchmark": TARGET,
            "what": self.what,
            "bound": self.bound,
            "is_most": self.is_most,
            "value": self.value,
            "is_met": self.is_kept,
        }


class Prompts:
    """Chat prompts of words from this project's documents, no two alike.

    Args:
        model: Has the tokenizer and its chat template.
    """

    def __init__(self, model: Model) -> None:
        self._tokenizer = model.tokenizer
        self._words = " ".join(file.read_text() for file in DOCUMENTS).split()
        self._random = np.random.default_rng(SEED)
        self._numbers = itertools.count()

    def text(self, words: int) -> str:
        """Return consecutive words from a random place."""
        start = int(self._random.integers(len(self._words) - words))
        return " ".join(self._words[start : start + words])

    def question(self, words: int = QUESTION_WORDS, *, system: str | None = None) -> list[int]:
        """Return the tokens of a numbered question, after a system message if there is one."""
        user = f"{next(self._numbers)}. What is this? {self.text(words)}"
        messages = [{"role": "user", "content": user}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return list(self._tokenizer(str(text), add_special_tokens=False).input_ids)


def measure_room(model: Model) -> tuple[Record, list[Promise]]:
    """Fill a budget with sequences of CONTEXT tokens and let them all go on by one token."""
    layers = model.manifest.layers
    budget = FP16_SEQUENCES * CONTEXT * fp16_bytes_per_token(layers)
    cache = PagedCache.within(layers, max_bytes=budget, slots=_most_sequences(layers, budget))
    engine, prompts = PagedEngine(model, cache), Prompts(model)
    sequences = []
    while cache.free_slots:
        tokens = [*prompts.question(CONTEXT)[:CONTEXT], 0]
        plan = TokenPlan(tokens, prompt_tokens=CONTEXT, config=layers[0].config)
        sequences.append(_held(cache.open(plan)))
        while sequences[-1].is_prefilling:
            _run(engine, sequences[-1:])
    _run(engine, sequences)
    cache.check()
    row = {
        "budget_bytes": budget,
        "allocated_bytes": cache.allocated_bytes,
        "used_bytes": cache.nbytes,
        "tokens_each": CONTEXT + 1,
        "sequences": len(sequences),
        "fp16_sequences": FP16_SEQUENCES,
    }
    what = f"sequences of {CONTEXT} tokens at the same time, times those of an FP16 cache"
    return row, [
        Promise(what, 3.0, len(sequences) / FP16_SEQUENCES),
        Promise(
            "bytes allocated for them, of the budget", 1.0, cache.allocated_bytes / budget, True
        ),
    ]


def _most_sequences(layers: Sequence[LayerFacts], budget: int) -> int:
    """Return how many sequences fit when all prompts begin with the same sink tokens."""
    page = sum(map(page_bytes, layers))
    each = num_pages(CONTEXT, layers[0].config) * page + buffer_bytes(layers)
    return (budget - page) // each


def _held(sequence: PagedSequence | None) -> PagedSequence:
    assert sequence is not None  # noqa: S101 - a buffer row is free
    return sequence


def _run(engine: PagedEngine, sequences: Sequence[PagedSequence]) -> None:
    if not all(map(engine.cache.reserve, sequences)):
        raise RuntimeError("the budget has no page left")
    last = [logits_V for logits_V in engine.step(sequences) if logits_V is not None]
    if not np.isfinite(last).all():
        raise RuntimeError("logits are not finite")
    for sequence in sequences:
        engine.cache.publish(sequence)


def measure_sharing(model: Model) -> tuple[Record, list[Promise]]:
    """Let requests with one long system prompt run together, and one of them alone."""
    prompts = Prompts(model)
    system = prompts.text(CONTEXT)
    questions = [prompts.question(2, system=system) for _ in range(SHARERS)]
    left_out = _common_prefix(questions) - CONTEXT
    questions = [ids[:CONTEXT] + ids[CONTEXT + left_out :] for ids in questions]
    common = _common_prefix(questions)
    one = _prefill(model, questions[:1], shared_prefix=common)
    marked = _prefill(model, questions, shared_prefix=common)
    pages_only = _prefill(model, questions, shared_prefix=0)
    row = {
        "requests": SHARERS,
        "common_tokens": common,
        "prompt_tokens": sum(map(len, questions)),
        "one": one,
        "all": marked,
        "all_without_shared_prefix": pages_only,
    }
    what = f"prefill of {SHARERS} prompts that share {common} tokens, over that of one"
    return row, [
        Promise(f"{what}: tokens", 1.2, marked["tokens"] / one["tokens"], is_most=True),
    ]


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    differ = (len(set(tokens)) > 1 for tokens in zip(*rows, strict=False))
    return next(index for index, is_other in enumerate(differ) if is_other)


def _prefill(model: Model, prompts: Sequence[Sequence[int]], *, shared_prefix: int) -> Record:
    with Scheduler(model, max_cache_bytes=CACHE_BYTES, max_batch=len(prompts)) as scheduler:
        started = time.perf_counter()
        tickets = [
            scheduler.submit(
                prompt, GenerationOptions(max_new_tokens=1), shared_prefix=shared_prefix
            )
            for prompt in prompts
        ]
        for ticket in tickets:
            list(ticket)
        return {
            "tokens": scheduler.stats().prefill_tokens,
            "seconds": time.perf_counter() - started,
        }


@dataclass
class Stream:
    """What one reader saw.

    Attributes:
        answers: Prompts and their whole answers.
        first: Seconds to each answer's first token.
        gaps: Seconds between tokens of the same answer.
        errors: Requests that failed.
    """

    answers: list[tuple[list[int], list[int | None]]] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def ask(self, scheduler: Scheduler, prompt: list[int]) -> None:
        """Send a request and read its answer."""
        before = time.perf_counter()
        answer: list[int | None] = []
        try:
            for event in scheduler.submit(prompt, _answer_options()):
                now = time.perf_counter()
                (self.gaps if answer else self.first).append(now - before)
                before = now
                answer.append(event.token)
        except GearError as error:
            self.errors.append(str(error))
            return
        self.answers.append((prompt, answer))


def _answer_options() -> GenerationOptions:
    return GenerationOptions(max_new_tokens=NEW_TOKENS, eos_token_id=())


def measure_streams(model: Model, minutes: float) -> tuple[Record, list[Promise]]:
    """Let many readers ask one question after another, then ask some of these again alone."""
    prompts = Prompts(model)
    streams = [Stream() for _ in range(STREAMS)]
    neighbours = Neighbours(time.process_time())
    with Scheduler(model, max_cache_bytes=CACHE_BYTES, max_batch=STREAMS) as scheduler:
        seconds = _read(scheduler, streams, prompts, minutes)
        scheduler.check()
        stats = scheduler.stats()
    other_cores = neighbours.cores(time.process_time())
    answers = [answer for stream in streams for answer in stream.answers]
    errors = [error for stream in streams for error in stream.errors]
    again = answers[:: max(1, len(answers) // CHECKED)][:CHECKED]
    alone, alone_seconds = _one_at_a_time(model, [prompt for prompt, _ in again])
    wrong = sum(tokens != answer for tokens, (_, answer) in zip(alone, again, strict=True))
    speed = stats.generated_tokens / seconds
    alone_speed = sum(map(len, alone)) / alone_seconds
    gaps = np.concatenate([stream.gaps for stream in streams])
    first = np.concatenate([stream.first for stream in streams])
    row = {
        "streams": STREAMS,
        "minutes": minutes,
        "seconds": seconds,
        "requests": len(answers) + len(errors),
        "errors": errors[:10],
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "tokens_per_second": speed,
        "tokens_per_second_alone": alone_speed,
        "seconds_to_first_token": _quantiles(first),
        "seconds_between_tokens": _quantiles(gaps),
        "answers_checked": len(again),
        "cache_bytes_total": stats.cache_bytes_total,
        "preemptions": stats.preemptions,
        "evictions": stats.evictions,
        "peak_memory_bytes": peak_memory_bytes(),
        "other_cores": other_cores,
    }
    steadiness = float(np.quantile(gaps, 0.99) / np.median(gaps))
    return row, [
        Promise(
            f"{STREAMS} streams: tokens per second, times one at a time", 3.0, speed / alone_speed
        ),
        Promise("time between tokens: 99th percentile over median", 5.0, steadiness, True),
        Promise("requests that failed", 0, len(errors), True),
        Promise("bytes held after the last answer", 0, stats.cache_bytes_used, True),
        Promise(f"answers of {len(again)} that are others than alone", 0, wrong, True),
    ]


def _read(
    scheduler: Scheduler, streams: Sequence[Stream], prompts: Prompts, minutes: float
) -> float:
    """Let all streams ask until the time is up; return the seconds to the last answer."""
    lock = threading.Lock()
    started = time.perf_counter()

    def read(stream: Stream) -> None:
        is_time_up = False
        while not is_time_up:
            with lock:
                prompt = prompts.question()
            stream.ask(scheduler, prompt)
            is_time_up = time.perf_counter() - started >= 60 * minutes

    readers = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return time.perf_counter() - started


def _one_at_a_time(
    model: Model, prompts: Sequence[list[int]]
) -> tuple[list[list[int | None]], float]:
    with Scheduler(model, max_cache_bytes=CACHE_BYTES, max_batch=1) as scheduler:
        started = time.perf_counter()
        answers = [
            [event.token for event in scheduler.submit(prompt, _answer_options())]
            for prompt in prompts
        ]
        return answers, time.perf_counter() - started


def _quantiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(np.quantile(seconds, q)) for name, q in (("p50", 0.5), ("p99", 0.99))}


def table(promises: Sequence[Promise]) -> Table:
    """Return the verdicts."""
    verdicts = Table("promise", "must be", "is", "", box=None)
    for promise in promises:
        verdicts.add_row(
            promise.what,
            f"{'≤' if promise.is_most else '≥'} {promise.bound:g}",
            f"{promise.value:.3g}",
            "[green]kept[/]" if promise.is_kept else "[red]broken[/]",
        )
    return verdicts


def main() -> int:
    """Measure, record, check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path, nargs="?", default=demo.ENGINE)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long the streams run")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all of them")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    if arguments.engine == demo.ENGINE:
        demo.export(console)
    model = Model.open(arguments.engine, threads=THREADS)
    config = model.manifest.layers[0].config.model_dump()
    promises: list[Promise] = []
    for part in arguments.part or PARTS:
        with console.status(part):
            row, found = PARTS[part](model, arguments)
        common = {"benchmark": RECORD, "part": part, "threads": THREADS, "config": config}
        append_rows(RECORD, [{**common, **row}, *(promise.record() for promise in found)])
        promises += found
    Console().print(table(promises))
    return 0 if all(promise.is_kept for promise in promises) else 1


PARTS: dict[str, Callable[[Model, argparse.Namespace], tuple[Record, list[Promise]]]] = {
    "room": lambda model, _: measure_room(model),
    "sharing": lambda model, _: measure_sharing(model),
    "streams": lambda model, arguments: measure_streams(model, arguments.minutes),
}


if __name__ == "__main__":
    sys.exit(main())
