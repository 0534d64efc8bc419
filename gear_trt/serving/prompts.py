"""Between what a client writes and tokens: prompts encoded off the event loop, token texts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from gear_trt.runtime.manifest import ModelFacts
from gear_trt.runtime.text import encode_prompt
from gear_trt.serving.failures import ApiError
from gear_trt.serving.responses import TokenLogprob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[dict[str, str]] | tuple[int, ...]
"""Text as it is, messages for the chat template, or tokens."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Prompts:
    """Encodes prompts and checks that they fit.

    Args:
        tokenizer: The engine's.
        model: Knows the vocabulary and the context.
        max_tokens: Of one prompt.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, model: ModelFacts, *, max_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = model.vocab_size
        self._max_tokens = max_tokens
        self._one_at_a_time = asyncio.Lock()

    async def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the tokens of every prompt.

        Raises:
            ApiError: 400 for a prompt that is too long or holds tokens that do not exist.
            GearError: `EMPTY_PROMPT`, or `BAD_REQUEST` for messages that the template refuses.
        """
        async with self._one_at_a_time:
            return [await asyncio.to_thread(self._encode, prompt) for prompt in prompts]

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, tuple):
            ids = self._checked(prompt)
        else:
            ids = encode_prompt(self._tokenizer, prompt, chat=False)
        if len(ids) > self._max_tokens:
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens, this server takes {self._max_tokens}",
                code="context_length_exceeded",
            )
        return ids

    def _checked(self, ids: tuple[int, ...]) -> list[int]:
        if max(ids) >= self._vocab_size:
            raise ApiError(
                400,
                f"token {max(ids)} does not exist: the vocabulary ends at {self._vocab_size - 1}",
                param="prompt",
            )
        return list(ids)


class TokenTexts:
    """The text of single tokens, as it stands inside a text.

    Args:
        tokenizer: The engine's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Some decoders drop the space before the first token, so none is decoded as the first.
        self._before = tokenizer("a", add_special_tokens=False).input_ids
        self._before_text = str(tokenizer.decode(self._before))
        self.of = lru_cache(maxsize=1 << 14)(self._of)

    def _of(self, token: int) -> str:
        text = self._tokenizer.decode([*self._before, token], clean_up_tokenization_spaces=False)
        return str(text).removeprefix(self._before_text)

    def logprob(self, token: int, logprob: float) -> TokenLogprob:
        """Return a token with its log-probability, as the API shows it."""
        text = self.of(token)
        is_whole = _REPLACEMENT not in text
        return TokenLogprob(
            token=text, logprob=logprob, bytes=list(text.encode()) if is_whole else None
        )
