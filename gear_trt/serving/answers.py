"""The answers of one request: submitted together, read as one stream, cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from gear_trt.serving.contract import Event, Ticket
from gear_trt.serving.limits import Seat
from gear_trt.serving.metrics import AnswerWatch
from gear_trt.serving.responses import CachedTokens, Usage


class Answers:
    """The tickets of one request.

    Args:
        tickets: One per answer, in the order of the answers' indices.
        watches: One per ticket.
        answers_per_prompt: `n`.
        seat: The request's seats; `close` gives them back.
        prompt_tokens: Of all its prompts.
    """

    def __init__(
        self,
        tickets: Sequence[Ticket],
        watches: Sequence[AnswerWatch],
        *,
        answers_per_prompt: int,
        seat: Seat,
        prompt_tokens: int,
    ) -> None:
        self._tickets = tickets
        self._watches = watches
        self._answers_per_prompt = answers_per_prompt
        self._seat = seat
        self._prompt_tokens = prompt_tokens
        self._generated: dict[int, int] = {}
        self._cached: dict[int, int] = {}
        self._unfinished = set(range(len(tickets)))

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield the events of all answers as they come, each with the index of its answer.

        Raises:
            Exception: What the generator raises; the other answers are cancelled.
        """
        queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()
        readers = [
            asyncio.create_task(_read(index, ticket, queue))
            for index, ticket in enumerate(self._tickets)
        ]
        try:
            open_readers = len(readers)
            while open_readers:
                item = await queue.get()
                if item is None:
                    open_readers -= 1
                elif isinstance(item, BaseException):
                    self._end_all("error")
                    raise item
                else:
                    self._record(*item)
                    yield item
        finally:
            for reader in readers:
                reader.cancel()

    def usage(self) -> Usage:
        """Return the counts so far."""
        generated = sum(self._generated.values())
        cached = sum(
            tokens
            for index, tokens in self._cached.items()
            if index % self._answers_per_prompt == 0  # the others find what the first one left
        )
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=generated,
            total_tokens=self._prompt_tokens + generated,
            prompt_tokens_details=CachedTokens(cached_tokens=cached),
        )

    def close(self) -> None:
        """Cancel what has not ended and give the seats back."""
        for index in self._unfinished:
            self._tickets[index].cancel()
        self._end_all("cancelled")
        self._seat.give_back()

    def _record(self, index: int, event: Event) -> None:
        self._watches[index].saw(event)
        self._generated[index] = event.generated_tokens
        self._cached[index] = event.cached_tokens
        if event.finish_reason is not None:
            self._end(index, event.finish_reason)

    def _end_all(self, reason: str) -> None:
        for index in list(self._unfinished):
            self._end(index, reason)

    def _end(self, index: int, reason: str) -> None:
        self._unfinished.discard(index)
        self._watches[index].ended(reason)


async def _read(
    index: int,
    ticket: Ticket,
    queue: asyncio.Queue[tuple[int, Event] | BaseException | None],
) -> None:
    try:
        async for event in ticket:
            queue.put_nowait((index, event))
    except Exception as error:
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
