"""Prefix files: the pages and sinks of a prompt, from one paged cache to another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gear_trt.errors import ErrorCode, GearError
from gear_trt.reference.cache import num_pages
from gear_trt.runtime import cache_file
from gear_trt.runtime.paged_cache import PagedCache, PagedSequence
from gear_trt.runtime.token_plan import TokenPlan


def save(cache: PagedCache, path: Path, tokens: Sequence[int]) -> int:
    """Write the pages that a cache has for the start of a prompt to a safetensors file.

    Returns:
        Tokens that the file holds.

    Raises:
        GearError: `BAD_REQUEST` where the cache has none or no buffer row is free; `DISK_FULL`.
    """
    sequence = _open(cache, [*tokens, 0])  # one token more, since one is left to run
    try:
        length = cache.extend(sequence)
        if length == 0:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"the cache has no page of these {len(tokens)} tokens",
                hint="generate with them first; a page ends after "
                f"{sequence.plan.page_end(0)} tokens",
            )
        buffers = [cache.memory.read(rows, [sequence.slot]) for rows in cache.residual_buffers]
        for rows in buffers:
            rows[:, :, :, cache.sinks :] = 0  # of whoever had the row before
        content = cache_file.CacheContent(
            lengths=np.array([length], np.int32),
            token_ids=np.array([tokens[:length]], np.int32),
            pages=[cache.memory.read(pool, sequence.pages) for pool in cache.page_pools],
            residual_buffers=buffers,
        )
        cache_file.write(path, content, cache.layers, kind=cache_file.PREFIX)
    finally:
        cache.close(sequence)
    return length


def load(cache: PagedCache, path: Path) -> list[int]:
    """Take the pages of a file into a cache, for sequences that start with its tokens.

    Returns:
        The tokens.

    Raises:
        GearError: `MISSING_FILE`; `BAD_CACHE_FILE` where it is damaged or no prefix;
            `LAYOUT_MISMATCH` where another layout or config wrote it; `CONTEXT_EXCEEDED` where too
            few pages are free; `BAD_REQUEST` where no buffer row is free.
    """
    content = cache_file.read(path, cache.layers, kind=cache_file.PREFIX)
    _check(path, content, cache)
    tokens: list[int] = content.token_ids[0].tolist()
    if cache.pages_for(len(tokens)) > cache.allocator.available:
        raise GearError(
            ErrorCode.CONTEXT_EXCEEDED,
            f"{path} holds {len(tokens)} tokens, the cache has no room for them",
            hint="raise max_cache_bytes, or load it before the requests",
        )
    sequence = _open(cache, tokens)
    try:
        cache.reserve(sequence, up_to=len(tokens))
        sequence.length = len(tokens)
        for pool, pages in zip(cache.page_pools, content.pages, strict=True):
            cache.memory.write(pool, pages, sequence.pages)
        for rows, kept in zip(cache.residual_buffers, content.residual_buffers, strict=True):
            cache.memory.write(rows, kept, [sequence.slot])
        cache.publish(sequence)
    finally:
        cache.close(sequence)
    return tokens


def _open(cache: PagedCache, tokens: Sequence[int]) -> PagedSequence:
    config = cache.layers[0].config
    sequence = cache.open(TokenPlan(tokens, prompt_tokens=len(tokens), config=config))
    if sequence is None:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            "every buffer row of the cache is taken",
            hint="wait for a sequence to end, or allow more of them",
        )
    return sequence


def _check(path: Path, content: cache_file.CacheContent, cache: PagedCache) -> None:
    pages = [num_pages(int(length), cache.layers[0].config) for length in content.lengths]
    is_prefix = (
        len(pages) == 1
        and pages[0] > 0
        and content.lengths[0] == cache.sinks + pages[0] * cache.chunk
        and all(bool(np.isfinite(rows).all()) for rows in content.residual_buffers)
    )
    if not is_prefix:
        raise GearError(
            ErrorCode.BAD_CACHE_FILE,
            f"{path} does not hold the whole pages and finite sinks of one prompt",
            hint="save it again with save_prefix",
        )
