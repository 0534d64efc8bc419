"""What a caller holds of a request: its tokens as they come, and the means to end it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "timeout"]
"""As for an engine's generations; `timeout`: the request's time was up."""


@dataclass(frozen=True)
class TokenEvent:
    """One token of one sample of a request.

    Attributes:
        sample: Index of the sample, 0..n−1.
        token: The token, or None where the request was cancelled or its time was up.
        text: What became certain with this token; often empty, never half a character.
        finish_reason: Why this is the sample's last event; None for all others.
        prompt_tokens: Tokens of the prompt.
        shared_tokens: Tokens of the prompt whose pages were there already.
        generated_tokens: Tokens of the sample so far, this one included.
        logprob: Natural logarithm of the token's probability before any sampling option; None
            unless asked for.
        top_logprobs: The most likely tokens and their logarithms, likeliest first; as many as asked
            for.
    """

    sample: int
    token: int | None
    text: str
    finish_reason: FinishReason | None
    prompt_tokens: int
    shared_tokens: int
    generated_tokens: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Ticket:
    """The events of one request, for one reader: a thread (`for`) or a task (`async for`).

    Reading ends after the last event of the last sample, and raises the error of a request that
    failed. All methods may be called from any thread.

    Args:
        samples: Samples that were asked for.
    """

    def __init__(self, samples: int) -> None:
        self._open_samples = samples
        self._events: deque[TokenEvent | BaseException] = deque()
        self._changed = threading.Condition()
        self._cancelled = threading.Event()
        self._wake: Callable[[], object] | None = None

    def cancel(self) -> None:
        """End the request; samples that have not ended get a last event that says so."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def put(self, event: TokenEvent) -> None:
        """Hand an event to the reader; for the scheduler."""
        with self._changed:
            self._events.append(event)
            self._open_samples -= event.finish_reason is not None
            self._notify()

    def fail(self, error: BaseException) -> None:
        """Let the reader raise an error after the events so far; for the scheduler."""
        with self._changed:
            self._events.append(error)
            self._open_samples = 0
            self._notify()

    def __iter__(self) -> Iterator[TokenEvent]:
        """Yield the events as they come, waiting for each."""
        while True:
            with self._changed:
                self._changed.wait_for(self._is_readable)
                event = self._pop()
            if event is None:
                return
            yield event

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Yield the events as they come, without blocking the event loop."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._wake = lambda: _set(loop, ready)
        try:
            while True:
                with self._changed:
                    ready.clear()
                    is_readable = self._is_readable()
                    event = self._pop() if is_readable else None
                if not is_readable:
                    await ready.wait()
                elif event is None:
                    return
                else:
                    yield event
        finally:
            with self._changed:
                self._wake = None

    def _is_readable(self) -> bool:
        return bool(self._events) or self._open_samples == 0

    def _pop(self) -> TokenEvent | None:
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, BaseException):
            raise event
        return event

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            self._wake()


def _set(loop: asyncio.AbstractEventLoop, ready: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody reads any more
        loop.call_soon_threadsafe(ready.set)
