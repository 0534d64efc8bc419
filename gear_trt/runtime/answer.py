"""One growing answer: which token comes next, what text it makes, and whether it is the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gear_trt.runtime.options import GenerationOptions
from gear_trt.runtime.sampling import Sampler
from gear_trt.runtime.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length", "cancelled"]
"""`stop`: end-of-text token or stop string; `length`: max_new_tokens or a full context."""


@dataclass(frozen=True)
class AnswerToken:
    """The newest token of an answer.

    Attributes:
        token: Its id.
        text: What became certain with it.
        finish_reason: Why it is the last one; None for all others.
    """

    token: int
    text: str
    finish_reason: FinishReason | None


class Answer:
    """The tokens of a prompt and of the answer to it.

    Attributes:
        token_ids: Prompt and answer so far.
        prompt_tokens: Tokens of the prompt.

    Args:
        prompt_ids: Tokens of the prompt.
        options: What the caller asked for.
        tokenizer: The engine's tokenizer.
        eos_token_ids: The model's own end-of-text tokens.
        max_tokens: Tokens that the cache can hold for this answer and its prompt.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        *,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: Sequence[int],
        max_tokens: int,
    ) -> None:
        self.token_ids = list(prompt_ids)
        self.prompt_tokens = len(prompt_ids)
        # The last token is never run, so it needs no room.
        self._limit = min(options.max_new_tokens, max_tokens - self.prompt_tokens + 1)
        self._eos = eos_token_ids if options.eos_token_id is None else options.eos_token_id
        self._sampler = Sampler(options)
        self._text = TextStream(tokenizer, prompt_ids=prompt_ids, stop=options.stop)

    @property
    def generated_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.prompt_tokens

    def push(self, logits_V: NDArray[np.floating]) -> AnswerToken:
        """Choose the next token.

        Args:
            logits_V: [V] logits after `token_ids`.

        Raises:
            GearError: `NON_FINITE_ACTIVATION`.
        """
        token = self._sampler.choose(logits_V, self.token_ids)
        self.token_ids.append(token)
        text = "" if token in self._eos else self._text.push(token)
        reason = self._finish_reason(token)
        return AnswerToken(token, text if reason is None else text + self.flush(), reason)

    def flush(self) -> str:
        """Return the text that was held back, once no token follows."""
        return self._text.flush()

    def _finish_reason(self, token: int) -> FinishReason | None:
        if token in self._eos or self._text.stopped:
            return "stop"
        return "length" if self.generated_tokens >= self._limit else None
