"""Judging caches of a transformers model on a text, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gear_trt.bench.progress import Progress
from gear_trt.eval.candidate import Candidate, Decoder, exact, head_dim
from gear_trt.eval.divergence import Yardstick
from gear_trt.eval.records import EvalRow, make_row
from gear_trt.torch import GearCache


def judge(
    model: Any,  # noqa: ANN401 - untyped
    candidates: Sequence[Candidate],
    tokens_BT: NDArray[np.int64],
    progress: Progress,
    *,
    model_name: str,
    text_name: str,
) -> Iterator[EvalRow]:
    """Yield a row for each candidate as soon as it is judged.

    Args:
        model: A model of transformers, in eval mode.
        candidates: Caches.
        tokens_BT: [B, T + 1] token ids; the last column is only a target.
        progress: Told which candidate runs.
        model_name: What rows call the model.
        text_name: What rows call the text.
    """
    count = len(candidates) + 1
    progress("uncompressed", text_name, 0)
    yardstick = Yardstick(Decoder(model, exact()), tokens_BT)
    for index, candidate in enumerate(candidates, start=1):
        progress(candidate.name, text_name, index / count)
        decoder = Decoder(model, candidate)
        scores = yardstick.judge(decoder)
        yield make_row(
            candidate,
            scores,
            model=model_name,
            text=text_name,
            context=tokens_BT.shape[1] - 1,
            elements_per_token=elements_per_token(model.config),
            cache_bytes=decoder.cache.nbytes if isinstance(decoder.cache, GearCache) else None,
        )


def elements_per_token(config: Any) -> int:  # noqa: ANN401 - untyped
    """K and V elements of a token, all layers."""
    text = config.get_text_config(decoder=True)
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * int(text.num_hidden_layers) * int(kv_heads) * head_dim(config)
