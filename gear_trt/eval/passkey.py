"""Long-context retrieval: a number hidden in filler text, asked for at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from gear_trt.bench.progress import Progress
from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.contest import Contest
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
        benchmark: `eval-passkey`.
        model: Name of the model.
        candidate: Name of the cache.
        context: Tokens of the prompt.
        depth: Where the number stands, 0 (start) to 1 (end).
        key: The number.
        answer: What the model wrote.
        is_right: The answer begins with the number.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    benchmark: str = "eval-passkey"
    model: str
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


def parse_depths(text: str) -> tuple[float, ...]:
    """Read depths with commas between them, for instance `0.1,0.5`.

    Raises:
        GearError: `BAD_REQUEST`.
    """
    try:
        depths = tuple(float(item) for item in text.split(","))
    except ValueError:
        depths = ()
    if not depths or not all(0 <= depth <= 1 for depth in depths):
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"depths '{text}' are not parts of the text",
            hint="write numbers from 0 (start) to 1 (end), for instance 0.1,0.5,0.9",
        )
    return depths


def ask_all(
    contest: Contest, contexts: Sequence[int], depths: Sequence[float], progress: Progress
) -> Iterator[list[PasskeyRow]]:
    """Yield the answers of each cache, the uncompressed one first, at each context.

    Raises:
        GearError: `BAD_REQUEST` for contexts that the question or the model does not fit.
    """
    longest = contest.subject.max_context - ANSWER_TOKENS
    if max(contexts) > longest:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"a prompt of {max(contexts)} tokens leaves no room for the answer",
            hint=f"this model holds prompts of {longest} tokens",
        )
    count = len(contexts) * (len(contest.caches) + 1)
    for turn, context in enumerate(contexts):
        keys, prompts_BT = make_prompts(contest.tokenizer, context, depths)
        for index, (name, decoder) in enumerate(contest.decoders()):
            done = (turn * (len(contest.caches) + 1) + index) / count
            progress(name, f"{context} tokens", done)
            yield retrieve(
                contest.subject.name,
                name,
                decoder,
                contest.tokenizer,
                prompts_BT=prompts_BT,
                keys=keys,
                depths=depths,
            )


def retrieve(
    model: str,
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
        model: Name of the model.
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
            model=model,
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
