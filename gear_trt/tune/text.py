"""The text that a model is tuned on where the user gives none: one that it writes by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from gear_trt.eval.candidate import DENSE_ATTENTION

SEQUENCES = 2
"""Sequences that are decoded side by side: the weights are read once for both."""
SEED = 0


@torch.inference_mode()
def write_tokens(model: PreTrainedModel, context: int) -> NDArray[np.int64]:
    """Let the model write what it finds likely, from its first token on.

    Args:
        model: Its attention implementation is changed.
        context: T, tokens of a sequence that the model shall read.

    Returns:
        [SEQUENCES, T + 1] token ids, sampled with a fixed seed, the same on every run of a machine.
    """
    model.set_attn_implementation(DENSE_ATTENTION)
    start = model.config.get_text_config(decoder=True).bos_token_id or 0
    torch.manual_seed(SEED)
    generate: Any = model.generate
    written: torch.Tensor = generate(
        torch.full((SEQUENCES, 1), start),
        attention_mask=torch.ones((SEQUENCES, 1), dtype=torch.int64),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=context,
        max_new_tokens=context,
        pad_token_id=0,
    )
    return written.numpy().astype(np.int64)
