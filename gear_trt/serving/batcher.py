"""Continuous batching: which sequences run in the next step, and who gives way for lack of room."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import GearError
from gear_trt.runtime.answer import Answer
from gear_trt.runtime.paged_cache import PagedSequence
from gear_trt.runtime.paged_engine import PagedEngine
from gear_trt.serving.job import Job, Request
from gear_trt.serving.ticket import FinishReason

PREFILL_TOKENS = 160
"""Prompt tokens, padding included, that run between two tokens of the sequences that decode."""


@dataclass
class Counts:
    """What a batcher has done so far.

    Attributes:
        prompt_tokens: Tokens of all prompts that began to run.
        shared_tokens: Of these, tokens whose pages were there already.
        prefill_tokens: Prompt tokens computed, those of pre-empted prompts again.
        decode_tokens: Tokens computed one by one, replayed ones included.
        generated_tokens: Tokens handed to readers.
        steps: Runs of the graph.
        preemptions: Times that a sequence gave way for lack of pages.
        finished: Samples that ended by themselves.
        cancelled: Samples that were cancelled or whose time was up.
        failed: Samples that ended with an error.
    """

    prompt_tokens: int = 0
    shared_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    preemptions: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0


class Batcher:
    """Moves jobs along on one engine, for one thread.

    Every round lets all decoding sequences do one token together and then runs slices of prompts.
    Slices end where pages end, whatever runs beside them, so that a prompt's pages and tokens
    depend on nothing but the prompt.

    Attributes:
        engine: Model and cache.
        counts: What was done so far.

    Args:
        engine: Model and an empty cache.
        clock: Seconds, for deadlines.
    """

    def __init__(self, engine: PagedEngine, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self.counts = Counts()
        self._cache = engine.cache
        self._clock = clock
        self._order = itertools.count()
        self._waiting: list[Job] = []  # by place
        self._running: list[Job] = []  # by place

    @property
    def max_tokens(self) -> int:
        """Tokens that one sequence can have, the prompt's included."""
        return min(self.engine.model.manifest.model.max_context, self._cache.max_tokens)

    @property
    def waiting(self) -> int:
        """Samples that hold nothing of the cache."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Samples that hold pages or a buffer row."""
        return len(self._running)

    def new_job(self, request: Request, sample: int = 0) -> Job:
        """Return a job for a sample of a request; may be called from any thread."""
        answer = Answer(
            request.prompt_ids,
            request.options_of(sample),
            tokenizer=self.engine.model.tokenizer,
            eos_token_ids=self.engine.model.manifest.model.eos_token_ids,
            max_tokens=self.max_tokens,
        )
        return Job(request, sample, next(self._order), answer)

    def add(self, job: Job) -> None:
        """Put the first job of a request in its place in the queue; it forks after the prompt."""
        job.to_fork = job.request.samples > 1
        _insert(self._waiting, job)

    def step(self) -> None:
        """Do one round; every event goes to its ticket."""
        self._end_overdue()
        self._admit()
        self._decode()
        self._prefill()

    def fail_all(self, error: BaseException) -> None:
        """End every job with an error."""
        for job in [*self._running, *self._waiting]:
            self._fail(job, error)

    # Who is in

    def _end_overdue(self) -> None:
        now = self._clock()
        for job in [*self._running, *self._waiting]:
            if job.request.ticket.is_cancelled:
                self._end_early(job, "cancelled")
            elif now >= job.request.deadline:
                self._end_early(job, "timeout")

    def _end_early(self, job: Job, reason: FinishReason) -> None:
        samples = range(job.request.samples) if job.to_fork else [job.sample]
        text = job.answer.flush()
        for sample in samples:
            job.sample = sample
            job.emit(text, None, reason)
            self.counts.cancelled += 1
        self._remove(job)

    def _fail(self, job: Job, error: BaseException) -> None:
        """End all samples of a job's request."""
        for one in [*self._running, *self._waiting]:
            if one.request is job.request:
                self._remove(one)
                self.counts.failed += 1
        job.request.ticket.fail(error)

    def _remove(self, job: Job) -> None:
        if job.sequence is None:
            self._waiting.remove(job)
            return
        self._running.remove(job)
        self._cache.close(job.sequence)
        job.sequence = None

    def _admit(self) -> None:
        while self._waiting and (sequence := self._cache.open()) is not None:
            job = self._waiting[0]
            shared = self._cache.extend(sequence, job.answer.token_ids, job.answer.prompt_tokens)
            if not self._has_room(job, sequence):
                self._cache.close(sequence)
                return
            job.sequence = sequence
            if not job.answer.generated_tokens:
                job.shared_tokens = min(shared, job.answer.prompt_tokens)
                self.counts.prompt_tokens += job.answer.prompt_tokens
                self.counts.shared_tokens += job.shared_tokens
            _insert(self._running, self._waiting.pop(0))

    def _has_room(self, job: Job, sequence: PagedSequence) -> bool:
        """Whether a job's tokens fit, and a page more for every sequence that runs."""
        if not self._running:
            return True  # alone, whatever was accepted fits
        promised = sum(
            self._missing_pages(one, one.sequence) for one in self._running if one.sequence
        )
        needed = promised + len(self._running) + self._missing_pages(job, sequence)
        return needed <= self._cache.allocator.available

    def _missing_pages(self, job: Job, sequence: PagedSequence) -> int:
        missing = self._cache.pages_for(len(job.answer.token_ids)) - len(sequence.held_pages)
        return max(missing, 0)

    # What runs

    def _decode(self) -> None:
        jobs = [job for job in self._running if not self._is_prefilling(job)]
        jobs = self._with_pages([(job, 1) for job in jobs])
        self._run([(job, 1) for job in jobs])
        self.counts.decode_tokens += len(jobs)

    def _prefill(self) -> None:
        slices = self._choose_slices()
        lengths = dict(slices)
        jobs = self._with_pages(slices)
        self._run([(job, lengths[job]) for job in jobs])
        self.counts.prefill_tokens += sum(lengths[job] for job in jobs)

    def _choose_slices(self) -> list[tuple[Job, int]]:
        """Return the next slices of the prompts whose turn it is."""
        slices: list[tuple[Job, int]] = []
        keys: set[bytes] = set()
        for job in filter(self._is_prefilling, list(self._running)):
            sequence = _held(job)
            tokens, prompt = job.answer.token_ids, job.answer.prompt_tokens
            shared = self._cache.extend(sequence, tokens, prompt)
            if not job.answer.generated_tokens:
                job.shared_tokens += shared
                self.counts.shared_tokens += shared
            if not self._is_prefilling(job):
                continue
            length = min(self._cache.boundary(sequence.length), prompt) - sequence.length
            widest = max(length, *(other for _, other in slices), 0)
            if slices and (len(slices) + 1) * widest > PREFILL_TOKENS:
                break
            key = self._cache.next_key(sequence, tokens, prompt)
            if key in keys:
                continue  # a slice of this step makes the same page: take it from there
            if key is not None:
                keys.add(key)
            slices.append((job, length))
        return slices

    @staticmethod
    def _is_prefilling(job: Job) -> bool:
        return _held(job).length < job.answer.prompt_tokens

    def _with_pages(self, wanted: Sequence[tuple[Job, int]]) -> list[Job]:
        """Return the jobs that have pages for so many new tokens; the last in place give way."""
        for job, new_tokens in wanted:
            while job.sequence and not self._cache.reserve(job.sequence, new_tokens):
                self._preempt(self._running[-1])
        return [job for job, _ in wanted if job.sequence]

    def _preempt(self, job: Job) -> None:
        """Let a job wait, and its pages be cached: what is not evicted is found again.

        The rest is computed again, prompt in the same slices and answer token by token, so that it
        gets the same values.
        """
        self._cache.publish(_held(job), job.answer.token_ids, job.answer.prompt_tokens)
        self._cache.close(_held(job))
        job.sequence = None
        self._running.remove(job)
        _insert(self._waiting, job)
        self.counts.preemptions += 1

    def _run(self, parts: Sequence[tuple[Job, int]]) -> None:
        """Run the next tokens of jobs; what fails together is run one by one."""
        if not parts:
            return
        rows = [(_held(job), _next_tokens(job, length)) for job, length in parts]
        self.counts.steps += 1
        try:
            logits_BV = self.engine.step(rows)
        except GearError as error:
            if len(parts) == 1:
                self._fail(parts[0][0], error)
                return
            for part in parts:
                if part[0].sequence:  # its request has not failed with another sample
                    self._run([part])
            return
        for (job, _), logits_V in zip(parts, logits_BV, strict=True):
            if job.sequence:
                self._after_step(job, logits_V)

    def _after_step(self, job: Job, logits_V: NDArray[np.floating]) -> None:
        sequence = _held(job)
        if sequence.length <= job.answer.prompt_tokens:
            self._cache.publish(sequence, job.answer.token_ids, job.answer.prompt_tokens)
        if sequence.length < len(job.answer.token_ids):
            return
        for one in [job, *self._forks(job)]:
            if one.sequence:
                self._push(one, logits_V)

    def _forks(self, job: Job) -> list[Job]:
        """Make the other samples after the prompt; without a buffer row they wait for one."""
        if not job.to_fork:
            return []
        job.to_fork = False
        copies = [self.new_job(job.request, sample) for sample in range(1, job.request.samples)]
        for copy in copies:
            copy.shared_tokens = job.shared_tokens
            copy.sequence = self._cache.fork(_held(job))
            _insert(self._running if copy.sequence else self._waiting, copy)
        return copies

    def _push(self, job: Job, logits_V: NDArray[np.floating]) -> None:
        try:
            newest = job.answer.push(logits_V)
        except GearError as error:
            self._fail(job, error)
            return
        self.counts.generated_tokens += 1
        job.emit(newest.text, newest.token, newest.finish_reason, logits_V)
        if newest.finish_reason is not None:
            self.counts.finished += 1
            self._remove(job)


def _insert(queue: list[Job], job: Job) -> None:
    bisect.insort(queue, job, key=lambda one: one.place)


def _held(job: Job) -> PagedSequence:
    assert job.sequence is not None  # noqa: S101 - only running jobs come here
    return job.sequence


def _next_tokens(job: Job, length: int) -> list[int]:
    start = _held(job).length
    return job.answer.token_ids[start : start + length]
