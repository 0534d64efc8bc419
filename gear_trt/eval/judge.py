"""Judging caches of a model on a text, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gear_trt.bench.progress import Progress
from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.divergence import UNSCORED, Yardstick
from gear_trt.eval.records import EvalRow, make_row
from gear_trt.eval.subject import AnyCache, Subject


def judge(
    subject: Subject[AnyCache],
    caches: Sequence[AnyCache],
    tokens_BT: NDArray[np.int64],
    progress: Progress,
    *,
    text_name: str,
) -> Iterator[EvalRow]:
    """Yield a row for each cache as soon as it is judged.

    Args:
        subject: The model.
        caches: What to judge.
        tokens_BT: [B, T + 1] token ids; the last column is only a target.
        progress: Told which cache runs.
        text_name: What rows call the text.

    Raises:
        GearError: `BAD_REQUEST` for sequences that are too short to be judged, or too long for the
            model.
    """
    context = tokens_BT.shape[1] - 1
    unscored = max(UNSCORED, *(cache.buffer for cache in caches), 0)
    if not unscored < context <= subject.max_context:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"sequences of {context} tokens cannot be judged",
            hint=f"they must be longer than {unscored} tokens, while which nothing is compressed, "
            f"and this model holds {subject.max_context}",
        )
    count = len(caches) + 1
    progress("uncompressed", text_name, 0)
    yardstick = Yardstick(subject.exact(), tokens_BT)
    for index, cache in enumerate(caches, start=1):
        progress(cache.name, text_name, index / count)
        decoder = subject.with_cache(cache)
        scores = yardstick.judge(decoder, unscored=max(UNSCORED, cache.buffer))
        yield make_row(
            cache,
            scores,
            model=subject.name,
            text=text_name,
            context=context,
            elements_per_token=subject.elements_per_token,
            cache_bytes=decoder.cache_bytes,
        )
