"""No kernel has a race, in whatever order threads run (plugins/cuda/emulator/races.h).

Rows of the case tables that pass through every barrier: without any one of them that is needed, one
of these fails.
"""

import dataclasses

import numpy as np
import pytest

from gear_trt.spec import CompressionConfig
from tests.cases import ATTENTION_CASES, COMPRESSION_CASES, AttentionCase
from tests.cuda.conftest import library_of
from tests.cuda.test_attention import PREFILL_CASES, SHARP_TOLERANCE
from tests.plugins.checks import check_attention

COMPRESSED = (
    "everything-dim-80", "fitted-group-64-dim-80", "rank-8-factors-4", "rank-4-factors-16",
    "chunk-128-dim-256", "outliers-4-metadata-8", "exact",
)  # fmt: skip
DECODED = (
    "bits-3-2-new-1", "bits-16-4-new-40", "group-32-metadata-8-chunk-128-new-2", "dim-256-bits-3",
    "rank-8-factors-4-new-1", "outliers-4-group-3-new-1", "rotation-1-1", "batch-ragged",
    "split-pages-window", "window-20-new-7", "paper-2bit",
)  # fmt: skip
PREFILLED = ("outliers-4-group-3-new-40", "dim-128-bits-2", "prompt-200", "window-20-new-70",
    "dim-128-bits-2-brain",
)  # fmt: skip
MANY_PAGES = AttentionCase(
    "many-pages",
    CompressionConfig.preset("k2v2"),
    past=(3000, 70),
    new=(1, 1),
    kv_heads=2,
)
"""A warp works on several pages in turn, while it copies the next ones."""


@pytest.fixture(scope="module")
def watched():
    with library_of("libgear_watched.so") as functions:
        yield functions


def _named(cases, names):
    found = [case for case in cases if case.name.removesuffix("-half") in names]
    assert len(found) == len(names)
    return found


@pytest.mark.parametrize("case", _named(COMPRESSION_CASES, COMPRESSED), ids=str)
def test_compression_has_no_race(case, watched):
    rng = np.random.default_rng(0)
    keys, values = (
        rng.normal(size=(3, case.config.chunk, case.head_dim)).astype(case.config.buffer_dtype)
        for _ in range(2)
    )
    assert watched.compress_pages(keys, values, case.config).any()


@pytest.mark.parametrize(
    "case",
    [
        *_named(ATTENTION_CASES, DECODED),
        *_named(PREFILL_CASES, PREFILLED),
        MANY_PAGES,
        dataclasses.replace(MANY_PAGES, head_dim=128, group=4),
    ],
    ids=str,
)
def test_attention_has_no_race(case, watched):
    check_attention(watched.attention, case, SHARP_TOLERANCE)
