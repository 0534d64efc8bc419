"""What a model is run over to measure the channels of its keys: the same tokens everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CALIBRATION_TOKENS = 512
"""Three whole groups of the largest size beside the sinks, fifteen of the smallest."""
CALIBRATION_SEED = 0


def calibration_tokens(vocab_size: int, max_context: int) -> NDArray[np.int64]:
    """Return random token ids: no tokenizer is needed, and text does about as well.

    Args:
        vocab_size: Ids are below.
        max_context: Longest sequence of the model, tokens.

    Returns:
        [1, T] ids; T is `CALIBRATION_TOKENS`, or `max_context` where that is less.
    """
    rng = np.random.default_rng(CALIBRATION_SEED)
    return rng.integers(0, vocab_size, (1, min(CALIBRATION_TOKENS, max_context)), dtype=np.int64)
