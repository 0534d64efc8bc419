"""Checking and padding the tokens that a caller passes to `Engine.step`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.manifest import ModelFacts

TokenRows = Sequence[Sequence[int]] | NDArray[np.integer]
"""One row of token ids per sequence: an array [B, S], or rows of unequal length."""


def pad_rows(
    tokens: TokenRows, *, batch: int, model: ModelFacts
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens padded to [B, S], and the length of every row [B].

    Args:
        tokens: The caller's rows; some may be empty.
        batch: B.
        model: Knows the vocabulary and the token to pad with.

    Raises:
        GearError: `BAD_REQUEST`, or `EMPTY_PROMPT` where all rows are empty.
    """
    rows = [np.asarray(row) for row in tokens]
    if len(rows) != batch or not all(map(_is_token_row, rows)):
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"tokens must be {batch} rows of integers, one row per sequence",
            hint="pass a list of lists, for instance [[1, 2, 3]] for batch=1",
        )
    lengths = np.array([len(row) for row in rows])
    if not lengths.any():
        raise GearError(
            ErrorCode.EMPTY_PROMPT, "no sequence has a new token", hint="pass at least one token"
        )
    ids = np.concatenate([row for row in rows if row.size])
    if ids.min() < 0 or ids.max() >= model.vocab_size:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"tokens go from {ids.min()} to {ids.max()}, "
            f"the vocabulary from 0 to {model.vocab_size - 1}",
            hint="use the tokenizer of this engine folder",
        )
    tokens_BS = np.full((batch, lengths.max()), model.pad_token_id, np.int64)
    for sequence, row in enumerate(rows):
        tokens_BS[sequence, : len(row)] = row
    return tokens_BS, lengths


def _is_token_row(row: NDArray[np.generic]) -> bool:
    return row.ndim == 1 and (row.size == 0 or row.dtype.kind in "iu")
