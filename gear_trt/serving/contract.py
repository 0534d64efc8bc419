"""What the HTTP layer asks of whatever generates: the scheduler, or a stand-in in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from gear_trt.runtime.generation import FinishReason
from gear_trt.runtime.options import GenerationOptions


class Event(Protocol):
    """One token of an answer."""

    @property
    def token(self) -> int | None: ...
    @property
    def text(self) -> str: ...
    @property
    def logprob(self) -> float | None: ...
    @property
    def top_logprobs(self) -> Sequence[tuple[int, float]]: ...
    @property
    def finish_reason(self) -> FinishReason | None: ...
    @property
    def generated_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...


class Ticket(Protocol):
    """A submitted prompt."""

    def __aiter__(self) -> AsyncIterator[Event]: ...
    def cancel(self) -> None: ...


class Stats(Protocol):
    running: int
    waiting: int
    cache_bytes: int
    fp16_bytes: int
    prefix_hit_tokens: int


class Generator(Protocol):
    def submit(self, prompt_ids: Sequence[int], options: GenerationOptions) -> Ticket: ...
    def stats(self) -> Stats: ...
