"""The answers of one request: submitted together, read as one stream, cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from gear_trt.serving.limits import Seat
from gear_trt.serving.metrics import AnswerWatch
from gear_trt.serving.responses import CachedTokens, Usage
from gear_trt.serving.ticket import Ticket, TokenEvent

IndexedEvent = tuple[int, TokenEvent]
"""An event and the index of its answer: the prompt's, times the answers per prompt, plus sample."""


class Answers:
    """What one request has submitted.

    Args:
        tickets: One per prompt.
        watches: One per answer, in the order of their indices.
        seat: The request's seats; `close` gives them back.
        prompt_tokens: Of all its prompts.
    """

    def __init__(
        self,
        tickets: Sequence[Ticket],
        watches: Sequence[AnswerWatch],
        *,
        seat: Seat,
        prompt_tokens: int,
    ) -> None:
        self._tickets = tickets
        self._watches = watches
        self._seat = seat
        self._prompt_tokens = prompt_tokens
        self._newest: dict[int, TokenEvent] = {}
        self._unfinished = set(range(len(watches)))

    async def events(self) -> AsyncGenerator[IndexedEvent, None]:
        """Yield the events of all answers as they come.

        Raises:
            GearError: What the scheduler raises of one of them.
        """
        queue: asyncio.Queue[IndexedEvent | Exception | None] = asyncio.Queue()
        per_prompt = len(self._watches) // len(self._tickets)
        readers = [
            asyncio.create_task(_read(ticket, prompt * per_prompt, queue))
            for prompt, ticket in enumerate(self._tickets)
        ]
        try:
            open_readers = len(readers)
            while open_readers:
                item = await queue.get()
                if item is None:
                    open_readers -= 1
                elif isinstance(item, Exception):
                    self._abandon("error")
                    raise item
                else:
                    self._record(*item)
                    yield item
        finally:
            for reader in readers:
                reader.cancel()

    def usage(self) -> Usage:
        """Return the counts so far."""
        generated = sum(event.generated_tokens for event in self._newest.values())
        shared = sum(event.shared_tokens for event in self._newest.values() if event.sample == 0)
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=generated,
            total_tokens=self._prompt_tokens + generated,
            prompt_tokens_details=CachedTokens(cached_tokens=shared),
        )

    def close(self) -> None:
        """Cancel what has not ended and give the seats back."""
        self._abandon("cancelled")
        self._seat.give_back()

    def _record(self, index: int, event: TokenEvent) -> None:
        self._watches[index].saw(event)
        self._newest[index] = event
        if event.finish_reason is not None:
            self._end(index, event.finish_reason)

    def _abandon(self, reason: str) -> None:
        if self._unfinished:
            for ticket in self._tickets:
                ticket.cancel()
        for index in list(self._unfinished):
            self._end(index, reason)

    def _end(self, index: int, reason: str) -> None:
        self._unfinished.discard(index)
        self._watches[index].ended(reason)


async def _read(
    ticket: Ticket, first_index: int, queue: asyncio.Queue[IndexedEvent | Exception | None]
) -> None:
    try:
        async for event in ticket:
            queue.put_nowait((first_index + event.sample, event))
    except Exception as error:
        queue.put_nowait(error)  # whoever reads the queue raises it
    else:
        queue.put_nowait(None)
