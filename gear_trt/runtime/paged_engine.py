"""Steps of a model over a paged cache: any sequences together, each with tokens of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gear_trt.runtime.model import Model
from gear_trt.runtime.paged_cache import PagedCache, PagedSequence

NewTokens = tuple[PagedSequence, Sequence[int]]
"""A sequence and the tokens to append to it, at least one."""


class PagedEngine:
    """A model and the paged cache it works on, for one thread.

    Attributes:
        model: Weights, graph and tokenizer.
        cache: The pages and buffers.

    Args:
        model: Weights, graph and tokenizer.
        cache: An empty cache for the model's layers.

    Raises:
        GearError: `DAMAGED_ENGINE` where graph and manifest do not fit.
    """

    def __init__(self, model: Model, cache: PagedCache) -> None:
        self.model = model
        self.cache = cache
        self._graph = model.backend.bind(cache)

    def step(self, rows: Sequence[NewTokens]) -> NDArray[np.float32]:
        """Append tokens and return what the model expects next.

        Args:
            rows: Sequences, none twice, for whose tokens pages are reserved.

        Returns:
            [B, vocab_size] float32 logits of each row's last token.

        Raises:
            GearError: `NON_FINITE_ACTIVATION`. No sequence has grown then, and the step may be
                repeated: what was written is written again before it is read. This holds for new
                tokens that do not reach from one page into the next.
        """
        self.cache.stage([sequence for sequence, _ in rows])
        new_lengths = np.array([len(tokens) for _, tokens in rows], np.int32)
        pad = self.model.manifest.model.pad_token_id
        tokens_BS = np.full((len(rows), new_lengths.max()), pad, np.int64)
        for row, (_, tokens) in zip(tokens_BS, rows, strict=True):
            row[: len(tokens)] = tokens
        logits_BSV = self._graph.run(tokens_BS, new_lengths)
        for sequence, tokens in rows:
            sequence.length += len(tokens)
        return logits_BSV[np.arange(len(rows)), new_lengths - 1].astype(np.float32)
