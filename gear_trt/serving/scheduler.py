"""The scheduler: many requests over one model and one cache, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime import prefix_file
from gear_trt.runtime.checks import in_range
from gear_trt.runtime.choice import backend_name
from gear_trt.runtime.model import Model
from gear_trt.runtime.options import GenerationOptions
from gear_trt.runtime.paged_cache import PagedCache
from gear_trt.runtime.paged_engine import PagedEngine
from gear_trt.runtime.tokens import pad_rows
from gear_trt.serving.batcher import Batcher
from gear_trt.serving.job import Job, Request
from gear_trt.serving.ticket import Ticket

SECONDS_PER_PRIORITY = 10.0
"""A request overtakes those that came this much earlier, per step of priority."""
MAX_SAMPLES = 128
"""Answers that one request may ask for."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class SchedulerStats:
    """State of a scheduler.

    Attributes:
        running: Samples that are being computed.
        waiting: Samples and requests that wait for room.
        cache_bytes_used: Bytes that running samples hold; shared pages count once.
        cache_bytes_cached: Bytes of pages kept for later requests, given up when room is needed.
        cache_bytes_total: Bytes of all pools and buffers.
        fp16_bytes: Bytes that an FP16 cache without sharing takes for the running samples.
        prompt_tokens: Tokens of all prompts that began to run.
        shared_tokens: Of these, tokens whose pages were there already (prefix hits).
        prefill_tokens: Prompt tokens computed.
        generated_tokens: Tokens handed to readers.
        preemptions: Times that a sample gave way for lack of pages.
        evictions: Cached pages given up.
        finished: Samples that ended by themselves.
        cancelled: Samples that were cancelled or whose time was up.
        failed: Samples that ended with an error.
    """

    running: int
    waiting: int
    cache_bytes_used: int
    cache_bytes_cached: int
    cache_bytes_total: int
    fp16_bytes: int
    prompt_tokens: int
    shared_tokens: int
    prefill_tokens: int
    generated_tokens: int
    preemptions: int
    evictions: int
    finished: int
    cancelled: int
    failed: int


class Scheduler:
    """Serves requests from any thread; a context manager that stops its thread at the end.

    A request is computed in the same steps, whatever else runs, waits or is cached. On the CPU it
    therefore gets the same tokens. On a GPU a row of a step depends in its last bits on how many
    rows there are, so that of two all but equal tokens the other one may be chosen.

    Args:
        model: An engine folder, or an opened one.
        max_cache_bytes: Bytes of pages and buffers together, where the backend keeps them. A
            TensorRT engine may take less; a warning says so.
        max_batch: Samples that run at the same time. Likewise.
        max_waiting: Requests that may wait; more are refused.
        threads: CPU threads of one step, where `model` is a folder; None means all that this
            process may use.
        backend: What runs the graph, where `model` is a folder; see `gear_trt.load`.

    Raises:
        GearError: those of `gear_trt.load`; `BAD_REQUEST` where the cache is too small,
            `OUT_OF_MEMORY` where it is too large.

    Example:
        >>> with Scheduler("smollm2-gear", max_cache_bytes=1 << 30) as scheduler:  # doctest: +SKIP
        ...     ticket = scheduler.submit(prompt_ids, GenerationOptions(max_new_tokens=64))
        ...     for event in ticket:
        ...         print(event.text, end="", flush=True)
    """

    def __init__(
        self,
        model: str | Path | Model,
        *,
        max_cache_bytes: int,
        max_batch: int = 64,
        max_waiting: int = 256,
        threads: int | None = None,
        backend: str = "auto",
    ) -> None:
        in_range("max_batch", max_batch, 1)
        in_range("max_waiting", max_waiting, 1)
        if not isinstance(model, Model):
            model = Model.open(Path(model), threads=threads, backend=backend_name(backend))
        _ = model.tokenizer  # a folder without one is refused here
        self.model = model
        cache = PagedCache.within(
            model.manifest.layers,
            max_bytes=max_cache_bytes,
            slots=max_batch,
            limits=model.backend.cache_limits,
            memory=model.backend.memory,
        )
        self._batcher = Batcher(PagedEngine(model, cache))
        self._cache = cache
        self._max_waiting = max_waiting
        self._inbox: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._drain_until = 0.0
        self._thread = threading.Thread(target=self._loop, name="gear-scheduler", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """Return the scheduler itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the scheduler."""
        self.close()

    @property
    def max_tokens(self) -> int:
        """Tokens that a prompt and its answer can have."""
        return self._batcher.max_tokens

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        with self._changed:
            return not self._is_closed

    def submit(
        self,
        prompt_ids: Sequence[int],
        options: GenerationOptions | None = None,
        *,
        n: int = 1,
        shared_prefix: int = 0,
        priority: int = 0,
        timeout_s: float | None = None,
        logprobs: int | None = None,
    ) -> Ticket:
        """Ask for answers to a prompt.

        Args:
            prompt_ids: Tokens of the prompt.
            options: How to generate; None means the defaults.
            n: Answers wanted. They share the prompt's pages; a seed counts up from one to the next.
            shared_prefix: Tokens at the prompt's start that other prompts have as well, such as a
                system prompt. Whole pages are shared without it; with it also the rest. It is part
                of the request: answers may differ slightly with it and without.
            priority: Above 0 overtakes earlier requests, below 0 gives way to later ones.
            timeout_s: Seconds from now after which the request ends.
            logprobs: Likeliest tokens to report with each token; 0 means the logarithm of the
                chosen one's probability only, None nothing.

        Raises:
            GearError: `EMPTY_PROMPT`, `BAD_REQUEST`, `CONTEXT_EXCEEDED` where the prompt is too
                long; `QUEUE_FULL`; `CLOSED`.
        """
        self._check(
            prompt_ids, n=n, shared_prefix=shared_prefix, timeout_s=timeout_s, logprobs=logprobs
        )
        now = time.monotonic()
        request = Request(
            ticket=Ticket(n),
            prompt_ids=tuple(map(int, prompt_ids)),
            options=options or GenerationOptions(),
            samples=n,
            shared_prefix=shared_prefix,
            turn=now - priority * SECONDS_PER_PRIORITY + self._prefill_seconds(prompt_ids),
            deadline=float("inf") if timeout_s is None else now + timeout_s,
            logprobs=logprobs,
        )
        job = self._batcher.new_job(request)
        with self._changed:
            self._check_open()
            if self._batcher.waiting + len(self._inbox) >= self._max_waiting:
                raise GearError(
                    ErrorCode.QUEUE_FULL,
                    f"{self._max_waiting} requests are waiting already",
                    hint="try again later",
                )
            self._inbox.append(job)
            self._changed.notify_all()
        return request.ticket

    def stats(self) -> SchedulerStats:
        """Return the state of this moment."""
        counts, cache = self._batcher.counts, self._cache
        return SchedulerStats(
            running=self._batcher.running,
            waiting=self._batcher.waiting + len(self._inbox),
            cache_bytes_used=cache.nbytes,
            cache_bytes_cached=cache.cached_bytes,
            cache_bytes_total=cache.allocated_bytes,
            fp16_bytes=cache.fp16_bytes,
            prompt_tokens=counts.prompt_tokens,
            shared_tokens=counts.shared_tokens,
            prefill_tokens=counts.prefill_tokens,
            generated_tokens=counts.generated_tokens,
            preemptions=counts.preemptions,
            evictions=cache.allocator.evictions,
            finished=counts.finished,
            cancelled=counts.cancelled,
            failed=counts.failed,
        )

    def check(self) -> None:
        """Check that no page and no buffer row is lost or owned twice.

        Raises:
            GearError: `BAD_CACHE_FILE`, naming what is wrong; `CLOSED`.
        """
        self._between_steps(self._cache.check)

    def save_prefix(self, path: str | Path, prompt_ids: Sequence[int]) -> int:
        """Write the pages that the cache has of a prompt; see `prefix_file.save`."""
        return self._between_steps(
            lambda: prefix_file.save(self._cache, Path(path), list(prompt_ids))
        )

    def load_prefix(self, path: str | Path) -> list[int]:
        """Take the pages of a file for later requests; see `prefix_file.load`."""
        return self._between_steps(lambda: prefix_file.load(self._cache, Path(path)))

    def close(self, *, drain_s: float = 0.0) -> None:
        """Refuse new requests, end those that are left and stop the thread.

        Args:
            drain_s: Seconds to let running and waiting requests finish.
        """
        with self._changed:
            self._is_closed = True
            self._drain_until = time.monotonic() + drain_s
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _check(
        self,
        prompt_ids: Sequence[int],
        *,
        n: int,
        shared_prefix: int,
        timeout_s: float | None,
        logprobs: int | None,
    ) -> None:
        model = self.model.manifest.model
        pad_rows([prompt_ids], batch=1, model=model)
        if len(prompt_ids) > self.max_tokens:
            raise GearError(
                ErrorCode.CONTEXT_EXCEEDED,
                f"the prompt has {len(prompt_ids)} tokens, this server takes {self.max_tokens}",
                hint="shorten the prompt"
                if self.max_tokens == model.max_context
                else "shorten the prompt, or raise max_cache_bytes; an engine may have limits, too",
            )
        in_range("n", n, 1, MAX_SAMPLES)
        in_range("shared_prefix", shared_prefix, 0, len(prompt_ids))
        in_range("logprobs", logprobs or 0, 0, model.vocab_size - 1)
        if timeout_s is not None and not timeout_s > 0:
            raise GearError(
                ErrorCode.BAD_REQUEST, f"timeout_s is {timeout_s}", hint="it must be above 0"
            )

    def _prefill_seconds(self, prompt_ids: Sequence[int]) -> float:
        """By how much time a request gives way for the length of its prompt.

        It is overtaken by those that came so much later, and by no others: so short prompts do not
        wait for long ones, and long ones are not overtaken for ever.
        """
        return len(prompt_ids) * self.model.backend.pace.seconds_per_token

    def _check_open(self) -> None:
        if self._is_closed:
            raise GearError(ErrorCode.CLOSED, "the scheduler is closed", hint="start another one")

    def _between_steps(self, call: Callable[[], Result]) -> Result:
        """Run a function on the scheduler's thread, where the cache is at rest."""
        future: Future[Result] = Future()
        with self._changed:
            self._check_open()
            self._calls.append((call, future))
            self._changed.notify_all()
        return future.result()

    def _loop(self) -> None:
        try:
            while self._take_work():
                self._batcher.step()
        except BaseException as error:
            self._end(error)
            raise
        self._end(GearError(ErrorCode.CLOSED, "the scheduler was closed", hint="start another one"))

    def _take_work(self) -> bool:
        """Wait until there is some; return False when the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_work() or self._is_closed)
            calls, self._calls = self._calls, deque()
            while self._inbox:
                self._batcher.add(self._inbox.popleft())
        for call, future in calls:
            _resolve(future, call)
        return not self._is_closed or (
            self._batcher.waiting + self._batcher.running > 0
            and time.monotonic() < self._drain_until
        )

    def _has_work(self) -> bool:
        return bool(self._inbox or self._calls or self._batcher.waiting or self._batcher.running)

    def _end(self, error: BaseException) -> None:
        with self._changed:
            self._is_closed = True
            for job in self._inbox:
                job.request.ticket.fail(error)
            for _, future in self._calls:
                future.set_exception(error)
            self._batcher.fail_all(error)


def _resolve(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except Exception as error:  # the caller raises it
        future.set_exception(error)
