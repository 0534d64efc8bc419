"""A generator whose answers, pauses and failures are written down."""

import asyncio
from dataclasses import dataclass, field

from gear_trt.runtime.generation import FinishReason


@dataclass(frozen=True)
class ScriptedEvent:
    text: str
    token: int | None
    generated_tokens: int
    logprob: float | None = -0.5
    top_logprobs: tuple = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0


@dataclass
class ScriptedTicket:
    prompt_ids: list
    options: object
    words: list
    failure: Exception | None
    gate: asyncio.Event
    is_cancelled: bool = False

    def cancel(self):
        self.is_cancelled = True

    async def __aiter__(self):
        for count, word in enumerate(self.words, start=1):
            if count > 1:
                await self.gate.wait()
            last = count == len(self.words)
            reason = "stop" if last and self.failure is None else None
            yield ScriptedEvent(word, 7, count, finish_reason=reason)
        if self.failure is not None:
            raise self.failure


@dataclass
class ScriptedGenerator:
    """Answers every prompt with `words`; after the first word it waits for `gate`."""

    words: list = field(default_factory=lambda: ["Hel", "lo", " you"])
    failure: Exception | None = None
    is_open: bool = True
    running: int = 3
    waiting: int = 2
    cache_bytes: int = 1000
    fp16_bytes: int = 3500
    prefix_hit_tokens: int = 64
    tickets: list = field(default_factory=list)

    def submit(self, prompt_ids, options):
        gate = asyncio.Event()
        if self.is_open:
            gate.set()
        ticket = ScriptedTicket(prompt_ids, options, self.words, self.failure, gate)
        self.tickets.append(ticket)
        return ticket

    def stats(self):
        return self
