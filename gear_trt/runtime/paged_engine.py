"""Steps of a model over a paged cache: any sequences together, each with tokens of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gear_trt.runtime.backend import Logits
from gear_trt.runtime.model import Model
from gear_trt.runtime.paged_cache import PagedCache, PagedSequence


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

    def step(self, sequences: Sequence[PagedSequence]) -> list[NDArray[np.float32] | None]:
        """Do the next step of each sequence's plan and return what the model expects next.

        Args:
            sequences: B sequences, none twice, that have reserved their pages.

        Returns:
            Per sequence [vocab_size] float32 logits of its last token; None where it has more
            tokens to run. Of no other token are logits brought to the host.

        Raises:
            GearError: `NON_FINITE_ACTIVATION`. No sequence has grown then, and the step may be
                repeated: it reaches from no page into the next, so what was written is written
                again before it is read.
        """
        self.cache.stage(sequences)
        new_lengths = np.array([sequence.step_tokens for sequence in sequences], np.int32)
        pad = self.model.manifest.model.pad_token_id
        tokens_BS = np.full((len(sequences), new_lengths.max()), pad, np.int64)
        for row, sequence, new in zip(tokens_BS, sequences, new_lengths, strict=True):
            row[:new] = sequence.plan.tokens[sequence.length : sequence.length + new]
        logits_BSV = self._graph.run(tokens_BS, new_lengths)
        for sequence, new in zip(sequences, new_lengths.tolist(), strict=True):
            sequence.length += new
        return _last_logits(logits_BSV, sequences, new_lengths)


def _last_logits(
    logits_BSV: Logits, sequences: Sequence[PagedSequence], new_lengths: NDArray[np.int32]
) -> list[NDArray[np.float32] | None]:
    last: list[NDArray[np.float32] | None] = [None] * len(sequences)
    rows = np.array([row for row, one in enumerate(sequences) if one.is_complete], np.int64)
    if not rows.size:
        return last
    batch, width, _ = logits_BSV.shape
    if rows.size == batch * width:  # a decode step, mostly: there is nothing to pick out and copy
        logits_RV = np.asarray(logits_BSV)[:, 0]
    else:
        logits_RV = logits_BSV[rows, new_lengths[rows] - 1]
    for row, logits_V in zip(rows, logits_RV, strict=True):
        last[row] = logits_V.astype(np.float32, copy=False)
    return last
