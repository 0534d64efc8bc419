"""Long-context retrieval: a number hidden in filler text, asked for at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.greedy import continuations
from gear_trt.eval.steps import Steps

FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
TASK = (
    "There is an important number hidden inside a lot of irrelevant text. Find it and remember "
    "it.\n\n"
)
NEEDLE = "\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "\n\nWhat is the pass key? The pass key is"
DIGITS = 5
ANSWER_TOKENS = 8
"""Enough for five digits and a space with any tokenizer."""


class PasskeyRow(BaseModel):
    """Retrieval at one length and depth.

    Attributes:
        candidate: Name of the cache.
        context: Tokens of the prompt.
        depth: Where the number stands, 0 (start) to 1 (end).
        key: The number.
        answer: What the model wrote.
        is_right: The answer begins with the number.
    """

    model_config = ConfigDict(frozen=True)

    candidate: str
    context: int
    depth: float
    key: str
    answer: str
    is_right: bool


def make_prompts(
    tokenizer: Any,  # noqa: ANN401 - untyped
    context: int,
    depths: Sequence[float],
    *,
    seed: int = 0,
) -> tuple[list[str], torch.Tensor]:
    """Return a key for every depth, and the prompts [B, context] that hide them.

    Raises:
        GearError: `BAD_REQUEST` where the question alone is longer than the context.
    """
    rng = np.random.default_rng(seed)
    keys = [
        "".join(map(str, rng.integers(0, 10, DIGITS))) for _ in depths
    ]  # from text, so that a key may start with 0
    return keys, torch.tensor(
        [_prompt(tokenizer, context, depth, key) for depth, key in zip(depths, keys, strict=True)]
    )


def retrieve(
    name: str,
    decoder: Steps,
    tokenizer: Any,  # noqa: ANN401 - untyped
    *,
    prompts_BT: torch.Tensor,
    keys: Sequence[str],
    depths: Sequence[float],
) -> list[PasskeyRow]:
    """Ask for the numbers of all prompts at once.

    Args:
        name: Of the cache.
        decoder: The model with the cache.
        tokenizer: Of the model.
        prompts_BT: [B, T] what `make_prompts` returned.
        keys: Likewise.
        depths: What it was called with.
    """
    tokens = continuations(decoder, prompts_BT)
    answers_BS = torch.stack([next(tokens) for _ in range(ANSWER_TOKENS)], dim=1)
    texts = [tokenizer.decode(answer_S.tolist()) for answer_S in answers_BS]
    return [
        PasskeyRow(
            candidate=name,
            context=prompts_BT.shape[1],
            depth=depth,
            key=key,
            answer=text,
            is_right=text.strip().startswith(key),
        )
        for depth, key, text in zip(depths, keys, texts, strict=True)
    ]


def _prompt(tokenizer: Any, context: int, depth: float, key: str) -> list[int]:  # noqa: ANN401
    """Return exactly `context` token ids: filler round the needle, cut where it is too long."""
    task, filler, needle, question = (
        tokenizer.encode(text, add_special_tokens=False)
        for text in (TASK, FILLER, NEEDLE.format(key=key), QUESTION)
    )
    room = context - len(task) - len(needle) - len(question)
    if room < 0:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"a context of {context} tokens is too short for the question",
            hint=f"ask for {context - room} tokens or more",
        )
    before = round(room * depth)
    endless = filler * (room // len(filler) + 1)
    return [*task, *endless[:before], *needle, *endless[: room - before], *question]
