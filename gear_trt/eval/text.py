"""Text to judge on: token ids of a file, in sequences of one length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError

_CHARACTERS_PER_TOKEN = 16
"""More than any tokenizer needs on prose: how much of a long file is read."""


def read_sequences(
    path: Path,
    tokenizer: Any,
    *,
    sequences: int,
    context: int,  # noqa: ANN401 - untyped
) -> NDArray[np.int64]:
    """Return the first tokens of a text.

    Args:
        path: A text file.
        tokenizer: Of the model.
        sequences: B.
        context: T, tokens of a sequence that the model reads.

    Returns:
        [B, T + 1] token ids, consecutive: the last column is what the last token should predict.

    Raises:
        GearError: `BAD_REQUEST` for a text that is too short or is no text.
        OSError: The file cannot be read.
    """
    needed = sequences * (context + 1)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(needed * _CHARACTERS_PER_TOKEN)
    except UnicodeDecodeError:
        raise GearError(
            ErrorCode.BAD_REQUEST, f"{path} is no UTF-8 text", hint="pass a plain text file"
        ) from None
    ids = np.array(tokenizer.encode(text, verbose=False), np.int64)
    if len(ids) < needed:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{path} has {len(ids)} tokens, {sequences} sequences of {context} need {needed}",
            hint="pass a longer text, or ask for fewer or shorter sequences",
        )
    return ids[:needed].reshape(sequences, context + 1)
