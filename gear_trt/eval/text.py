"""Text to judge on: token ids of a file, in sequences of one length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError

LINES_SUFFIX = ".jsonl"
_CHARACTERS_PER_TOKEN = 16
"""More than any tokenizer needs on prose: how much of a long file is read."""


def read_sequences(
    path: Path,
    tokenizer: Any,  # noqa: ANN401 - untyped
    *,
    sequences: int,
    context: int,
) -> NDArray[np.int64]:
    """Return the first tokens of a text.

    Args:
        path: A text file, or JSON lines whose texts are read one after the other.
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
        text = _read(path, needed * _CHARACTERS_PER_TOKEN)
    except ValueError:  # no UTF-8, or no JSON
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{path} is no text",
            hint="pass plain text in UTF-8, or JSON lines with texts",
        ) from None
    ids = np.array(tokenizer.encode(text, verbose=False), np.int64)
    if len(ids) < needed:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{path} has {len(ids)} tokens, {sequences} sequences of {context} need {needed}",
            hint="pass a longer text, or ask for fewer or shorter sequences",
        )
    return ids[:needed].reshape(sequences, context + 1)


def _read(path: Path, characters: int) -> str:
    with path.open(encoding="utf-8") as file:
        if path.suffix != LINES_SUFFIX:
            return file.read(characters)
        texts = [
            "\n".join(value for value in json.loads(line).values() if isinstance(value, str))
            for line in file.read(characters).splitlines()[:-1]  # the last one may be cut
        ]
    return "\n\n".join(texts)
