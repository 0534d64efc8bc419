"""A scheduler whose answers, pauses and failures are written down."""

from dataclasses import dataclass
from types import SimpleNamespace

from gear_trt.runtime.manifest import Manifest
from gear_trt.serving import SchedulerStats, Ticket, TokenEvent
from tests.runtime.folders import MAX_CONTEXT, byte_tokenizer

WORDS = ("Hel", "lo", " you")
STATS = dict.fromkeys(SchedulerStats.__dataclass_fields__, 0) | {
    "running": 3,
    "waiting": 2,
    "cache_bytes_used": 1_000_000,
    "fp16_bytes": 3_500_000,
    "prompt_tokens": 256,
    "shared_tokens": 64,
}


@dataclass
class ScriptedRequest:
    prompt_ids: list
    options: object
    ticket: Ticket
    timeout_s: float | None
    logprobs: int | None


class ScriptedScheduler:
    """Answers every prompt with `WORDS`; unless `answers_end`, with its first only."""

    def __init__(self, folder, *, answers_end=True):
        self.model = SimpleNamespace(manifest=Manifest.read(folder), tokenizer=byte_tokenizer())
        self.max_tokens = MAX_CONTEXT
        self.reset(answers_end=answers_end)

    def reset(self, *, answers_end=True):
        self.is_open = True
        self.answers_end = answers_end
        self.failure = None
        self.last_reason = "stop"
        self.requests = []

    def submit(self, prompt_ids, options, *, n, timeout_s, logprobs):
        ticket = Ticket(n)
        self.requests.append(ScriptedRequest(prompt_ids, options, ticket, timeout_s, logprobs))
        words = WORDS if self.answers_end else WORDS[:1]
        for count, word in enumerate(words, start=1):
            ends = count == len(WORDS) and self.failure is None
            for sample in range(n):
                ticket.put(
                    TokenEvent(
                        sample=sample,
                        token=7,
                        text=word,
                        finish_reason=self.last_reason if ends else None,
                        prompt_tokens=len(prompt_ids),
                        shared_tokens=0,
                        generated_tokens=count,
                    )
                )
        if self.failure is not None:
            ticket.fail(self.failure)
        return ticket

    def stats(self):
        return SchedulerStats(**STATS)
