"""What compressing pages costs, apart from everything else."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from statistics import median

import numpy as np

from gear_trt import native
from gear_trt.runtime.manifest import LayerFacts

PAGES_TIMED = 64


def compression_seconds_per_token(layers: Sequence[LayerFacts]) -> float:
    """Seconds on one thread that compressing takes per token of a long text, all layers."""
    return sum(
        count * facts.num_kv_heads * _page_seconds(facts) / facts.config.chunk
        for facts, count in Counter(layers).items()
    )


def _page_seconds(facts: LayerFacts) -> float:
    """Median seconds of compressing one page."""
    rng = np.random.default_rng(0)
    shape = (facts.config.chunk, facts.head_dim)
    keys, values = (rng.normal(size=shape).astype(facts.config.buffer_dtype) for _ in range(2))
    page = native.compress_page(keys, values, facts.config)
    seconds = []
    for _ in range(PAGES_TIMED):
        started = time.perf_counter()
        native.compress_page(keys, values, facts.config, out=page)
        seconds.append(time.perf_counter() - started)
    return median(seconds)
