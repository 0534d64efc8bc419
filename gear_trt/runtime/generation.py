"""From a prompt's tokens to an answer, one chunk per token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.answer import Answer, FinishReason
from gear_trt.runtime.options import GenerationOptions
from gear_trt.runtime.token_plan import TokenPlan

if TYPE_CHECKING:
    from gear_trt.runtime.engine import Engine

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class GenerationChunk:
    """One step of a generation.

    Attributes:
        text: What became certain with this token; often empty, never half a character.
        token: The token, or None where the generation was cancelled.
        finish_reason: Why this chunk is the last one; None for all others.
        prompt_tokens: Tokens of the prompt.
        generated_tokens: Tokens generated so far, this one included.
        tokens_per_second: Decoding speed so far, prompt not counted; 0 for the first token.
        kv_bytes: Bytes that the cache uses.
    """

    text: str
    token: int | None
    finish_reason: FinishReason | None
    prompt_tokens: int
    generated_tokens: int
    tokens_per_second: float
    kv_bytes: int


@dataclass(frozen=True)
class GenerationResult:
    """A whole generation; `str(result)` is its text. Fields as in `GenerationChunk`."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    prompt_tokens: int
    generated_tokens: int
    tokens_per_second: float
    kv_bytes: int

    def __str__(self) -> str:
        """Return the text."""
        return self.text

    @classmethod
    def of(cls, chunks: Iterable[GenerationChunk]) -> Self:
        """Run a generation to its end and join its chunks."""
        taken = list(chunks)
        last = taken[-1]
        return cls(
            text="".join(chunk.text for chunk in taken),
            token_ids=tuple(chunk.token for chunk in taken if chunk.token is not None),
            finish_reason=last.finish_reason,
            prompt_tokens=last.prompt_tokens,
            generated_tokens=last.generated_tokens,
            tokens_per_second=last.tokens_per_second,
            kv_bytes=last.kv_bytes,
        )


class Generation:
    """One generation on an engine of one sequence.

    Args:
        engine: The engine; its cache is this generation's until the last chunk.
        prompt_ids: Tokens of the prompt; they fit the cache.
        options: What the caller asked for.
        cancel: Ends the generation when set.
    """

    def __init__(
        self,
        engine: Engine,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        *,
        cancel: threading.Event | None,
    ) -> None:
        self._engine = engine
        self._answer = Answer(
            prompt_ids,
            options,
            tokenizer=engine.tokenizer,
            eos_token_ids=engine.manifest.model.eos_token_ids,
            max_tokens=engine.cache.max_tokens,
        )
        self._held_tokens = 0
        self._cancel = cancel or threading.Event()
        self._first_token_time = 0.0

    def chunks(self, *, reuse_cache: bool) -> Iterator[GenerationChunk]:
        """Yield the chunks of the answer.

        Args:
            reuse_cache: Keep what the cache holds where the prompt starts with it.
        """
        self._prepare_cache(reuse_cache)
        logits_V = self._prefill()
        while logits_V is not None:
            newest = self._answer.push(logits_V)
            yield self._chunk(newest.text, newest.token, newest.finish_reason)
            if newest.finish_reason is not None:
                return
            logits_V = self._step([newest.token])
        yield self._chunk(self._answer.flush(), None, "cancelled")

    def _prepare_cache(self, reuse_cache: bool) -> None:
        cache = self._engine.cache
        held = cache.tokens_held()
        starts_with_held = self._answer.token_ids[: len(held)] == held
        if reuse_cache and starts_with_held and len(held) < self._answer.prompt_tokens:
            self._held_tokens = len(held)
        else:
            cache.reset()

    def _prefill(self) -> FloatArray | None:
        """Run the prompt in the slices of a scheduler, so that the tokens are the same."""
        prompt_ids = self._answer.token_ids
        config = self._engine.cache.layers[0].config
        plan = TokenPlan(prompt_ids, prompt_tokens=len(prompt_ids), config=config)
        while True:
            start = self._held_tokens
            logits_V = self._step(prompt_ids[start : plan.step_end(start)])
            if logits_V is None or self._held_tokens == len(prompt_ids):
                return logits_V

    def _step(self, tokens: Sequence[int]) -> FloatArray | None:
        """Return the logits after `tokens`, or None where the generation was cancelled."""
        if self._cancel.is_set():
            return None
        if self._engine.cache.lengths[0] != self._held_tokens:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                "another generation has used this engine's cache in the meantime",
                hint="give each concurrent generation an engine.sibling()",
            )
        logits_V: FloatArray = self._engine.step([tokens])[0]
        self._held_tokens += len(tokens)
        return logits_V

    def _chunk(self, text: str, token: int | None, reason: FinishReason | None) -> GenerationChunk:
        return GenerationChunk(
            text=text,
            token=token,
            finish_reason=reason,
            prompt_tokens=self._answer.prompt_tokens,
            generated_tokens=self._answer.generated_tokens,
            tokens_per_second=self._decode_rate(),
            kv_bytes=self._engine.cache.nbytes,
        )

    def _decode_rate(self) -> float:
        now = time.perf_counter()
        decoded = self._answer.generated_tokens - 1
        if decoded <= 0:
            self._first_token_time = now
            return 0.0
        return decoded / (now - self._first_token_time)
