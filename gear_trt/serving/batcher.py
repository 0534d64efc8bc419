"""Continuous batching: which sequences run in the next step, and who gives way for lack of room."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import GearError
from gear_trt.runtime.answer import Answer
from gear_trt.runtime.paged_cache import PagedSequence
from gear_trt.runtime.paged_engine import PagedEngine
from gear_trt.runtime.token_plan import TokenPlan
from gear_trt.serving.job import Job, Request
from gear_trt.serving.ticket import FinishReason


@dataclass
class Counts:
    """What a batcher has done so far.

    Attributes:
        prompt_tokens: Tokens of all prompts that began to run.
        shared_tokens: Of these, tokens whose pages were there already.
        prefill_tokens: Prompt tokens computed, those of pre-empted prompts again.
        generated_tokens: Tokens handed to readers.
        preemptions: Times that a sequence gave way for lack of pages.
        finished: Samples that ended by themselves.
        cancelled: Samples that were cancelled or whose time was up.
        failed: Samples that ended with an error.
    """

    prompt_tokens: int = 0
    shared_tokens: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0


class Batcher:
    """Moves jobs along on one engine, for one thread.

    Every round lets all decoding sequences do one token together and then runs slices of prompts,
    as many tokens as the backend's pace says. Slices end where pages end, whatever runs beside
    them, so that a prompt's steps depend on nothing but the prompt.

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
        self._prefill_tokens = engine.model.backend.pace.prefill_tokens
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
        plan = TokenPlan(
            answer.token_ids,
            prompt_tokens=answer.prompt_tokens,
            config=self._cache.layers[0].config,
            mark=request.shared_prefix,
        )
        return Job(request, sample, next(self._order), answer, plan)

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
        """End every job with an error; readers hear of it whatever state the cache is in."""
        jobs = [*self._running, *self._waiting]
        for ticket in {job.request.ticket for job in jobs}:
            ticket.fail(error)
        for job in jobs:
            self._remove(job)
            self.counts.failed += 1

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
        self._remove(job)
        for sample in samples:
            self.counts.cancelled += 1
            replace(job, sample=sample).emit(text, None, reason)

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
        while self._waiting and (sequence := self._cache.open(self._waiting[0].plan)):
            job = self._waiting[0]
            shared = self._cache.extend(sequence)
            if not self._has_room(sequence):
                self._cache.close(sequence)
                return
            job.sequence = sequence
            if not job.answer.generated_tokens:
                self.counts.prompt_tokens += job.answer.prompt_tokens
                self._count_shared(job, shared)
            _insert(self._running, self._waiting.pop(0))

    def _count_shared(self, job: Job, tokens: int) -> None:
        if not job.answer.generated_tokens:
            job.shared_tokens += tokens
            self.counts.shared_tokens += tokens

    def _has_room(self, sequence: PagedSequence) -> bool:
        """Whether a sequence's tokens fit, and a page more for each one that runs."""
        if not self._running:
            return True  # alone, whatever was accepted fits
        promised = sum(self._missing_pages(_held(job)) for job in self._running)
        needed = promised + len(self._running) + self._missing_pages(sequence)
        return needed <= self._cache.allocator.available

    def _missing_pages(self, sequence: PagedSequence) -> int:
        needed = self._cache.pages_for(len(sequence.plan.tokens))
        return max(needed - len(sequence.held_pages), 0)

    # What runs

    def _decode(self) -> None:
        jobs = [job for job in self._running if not _held(job).is_prefilling]
        self._run(self._with_pages(jobs))

    def _prefill(self) -> None:
        jobs = self._with_pages(self._choose_prefills())
        self.counts.prefill_tokens += sum(_held(job).step_tokens for job in jobs)
        self._run(jobs)

    def _choose_prefills(self) -> list[Job]:
        """Return the jobs whose slices come next: in their order, as many as fit together."""
        chosen: list[Job] = []
        keys: set[bytes | None] = set()
        widest = 0
        for job in self._running:
            sequence = _held(job)
            if sequence.is_prefilling:
                self._count_shared(job, self._cache.extend(sequence))
            if not sequence.is_prefilling:
                continue
            key = self._cache.next_key(sequence)
            if key is not None and key in keys:
                continue  # a chosen slice makes the same page, which is there next time
            widest = max(widest, sequence.step_tokens)
            if chosen and (len(chosen) + 1) * widest > self._prefill_tokens:
                break
            chosen.append(job)
            keys.add(key)
        return chosen

    def _with_pages(self, jobs: Sequence[Job]) -> list[Job]:
        """Return those that have pages for their next step; the last in place give way."""
        for job in jobs:
            while job.sequence and not self._cache.reserve(job.sequence):
                self._preempt(self._running[-1])
        return [job for job in jobs if job.sequence]

    def _preempt(self, job: Job) -> None:
        """Let a job wait, and its pages be cached: what is not evicted is found again.

        The rest is computed again in the same steps, and so gets the same values, on a GPU but for
        the last bits.
        """
        self._cache.publish(_held(job))
        self._cache.close(_held(job))
        job.sequence = None
        self._running.remove(job)
        _insert(self._waiting, job)
        self.counts.preemptions += 1

    def _run(self, jobs: Sequence[Job]) -> None:
        """Run the next steps of jobs together; where that fails, one by one."""
        if not jobs:
            return
        try:
            logits = self.engine.step([_held(job) for job in jobs])
        except GearError as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return
            for job in jobs:
                if job.sequence:  # its request has not failed with another sample
                    self._run([job])
            return
        for job, logits_V in zip(jobs, logits, strict=True):
            if job.sequence:
                self._after_step(job, logits_V)

    def _after_step(self, job: Job, logits_V: NDArray[np.floating] | None) -> None:
        sequence = _held(job)
        if sequence.length <= job.answer.prompt_tokens:
            self._cache.publish(sequence)
        if logits_V is None:
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
            copy.sequence = self._cache.fork(_held(job), copy.plan)
            _insert(self._running if copy.sequence else self._waiting, copy)
        return copies

    def _push(self, job: Job, logits_V: NDArray[np.floating]) -> None:
        try:
            newest = job.answer.push(logits_V)
        except GearError as error:
            self._fail(job, error)
            return
        self.counts.generated_tokens += 1
        if newest.finish_reason is not None:
            self.counts.finished += 1
            self._remove(job)
        job.emit(newest.text, newest.token, newest.finish_reason, logits_V)


def _insert(queue: list[Job], job: Job) -> None:
    bisect.insort(queue, job, key=lambda one: one.place)


def _held(job: Job) -> PagedSequence:
    assert job.sequence is not None  # noqa: S101 - only running jobs come here
    return job.sequence
