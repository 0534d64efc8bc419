"""What is judged: a model that appends tokens to a cache, and how text is fed to it.

The protocol, the same for every cache: text is fed in slices, teacher-forced. Inside a slice
attention is exact; everything older has gone through the cache, of which the newest chunk at most
is still in the residual buffer. A slice is short, so that a query sees about as many exact tokens
as when one token is decoded at a time, and no divisor of a chunk, so that pages fill at every phase
of a slice whatever the number of sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

SLICE = 12
"""Tokens of a sequence per call: with chunks of 64, sixteen slices meet sixteen phases."""
PROMPT_SLICE = 60
"""Likewise where nothing in the text is scored, only what is generated after it."""


class Steps(Protocol):
    """A model with a cache for B sequences."""

    def reset(self) -> None:
        """Forget all tokens."""
        ...

    def step(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Append tokens to every sequence and return their logits [B, S, vocab_size] float32."""
        ...

    @property
    def cache_bytes(self) -> int | None:
        """Bytes in use of all sequences; None where the cache is not ours."""
        ...


def feed(
    decoder: Steps, tokens_BT: torch.Tensor, *, width: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Append tokens to an empty cache in slices.

    Args:
        decoder: Forgets what it holds first.
        tokens_BT: [B, T] token ids.
        width: Tokens of a slice.

    Yields:
        The start of a slice, and its logits [B, S, vocab_size] float32.
    """
    decoder.reset()
    for start in range(0, tokens_BT.shape[1], width):
        yield start, decoder.step(tokens_BT[:, start : start + width])
