"""Greedy decoding: how long a cache writes the same text as the uncompressed one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from gear_trt.eval.divergence import CONFIDENCE
from gear_trt.eval.steps import PROMPT_SLICE, Steps, feed


class GreedyRow(BaseModel):
    """How long a cache's greedy text is that of the uncompressed cache.

    Attributes:
        benchmark: `eval-greedy`.
        model: Name of the model.
        text: Name of the text.
        candidate: Name of the cache.
        prompts: How many prompts were continued.
        prompt_tokens: Tokens of each.
        new_tokens: Tokens generated after each.
        agreement: Mean number of tokens before the first that differs.
        agreement_error: Half the width of its 95 % confidence interval.
        identical: Prompts whose whole continuation is the same.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    benchmark: str = "eval-greedy"
    model: str
    text: str
    candidate: str
    prompts: int
    prompt_tokens: int
    new_tokens: int
    agreement: float
    agreement_error: float
    identical: int


def continuations(decoder: Steps, prompts_BT: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the most likely next tokens [B] of every sequence, one step after the other.

    Args:
        decoder: Forgets what it holds first.
        prompts_BT: [B, T] token ids.
    """
    _, logits_BSV = deque(feed(decoder, prompts_BT, width=PROMPT_SLICE), maxlen=1).pop()
    while True:
        next_B = logits_BSV[:, -1].argmax(dim=-1)
        yield next_B
        logits_BSV = decoder.step(next_B[:, None])


def continued(decoder: Steps, prompts_BT: torch.Tensor, count: int) -> torch.Tensor:
    """Return the `count` tokens [B, count] that follow the prompts."""
    tokens = continuations(decoder, prompts_BT)
    return torch.stack([next(tokens) for _ in range(count)], dim=1)


def compare(
    name: str,
    prompts_BT: torch.Tensor,
    exact_BS: torch.Tensor,
    other_BS: torch.Tensor,
    *,
    model: str,
    text: str,
) -> GreedyRow:
    """Return the row of a cache.

    Args:
        name: Of the cache.
        prompts_BT: [B, T] token ids.
        exact_BS: [B, S] what the uncompressed cache continues them with.
        other_BS: [B, S] what the cache does.
        model: Name of the model.
        text: Name of the text.
    """
    same_B = (exact_BS == other_BS).cumprod(dim=1).sum(dim=1).double().numpy()
    spread = float(np.std(same_B, ddof=1)) if len(same_B) > 1 else math.nan
    return GreedyRow(
        model=model,
        text=text,
        candidate=name,
        prompts=len(same_B),
        prompt_tokens=prompts_BT.shape[1],
        new_tokens=exact_BS.shape[1],
        agreement=float(same_B.mean()),
        agreement_error=CONFIDENCE * spread / math.sqrt(len(same_B)),
        identical=int((same_B == exact_BS.shape[1]).sum()),
    )
