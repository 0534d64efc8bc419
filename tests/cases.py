"""The case table: what every implementation of the kernels must get right.

One table for all back ends. A test takes rows from `COMPRESSION_CASES` or `ATTENTION_CASES`, runs
its implementation on `pages(case)` or `attention_call(case)` and compares with the reference's
result, which is computed once per row and process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from zlib import crc32

import ml_dtypes  # noqa: F401 - makes numpy know bfloat16 by its name
import numpy as np
from numpy.typing import NDArray

from gear_trt import reference
from gear_trt.spec import CompressionConfig

FloatArray = NDArray[np.float32]

PLAIN = CompressionConfig(sinks=0, rotate_keys=0, rotate_values=0, fit_ranges=0)
"""4 bits, two-level metadata, nothing else: rows change it one axis at a time."""


def _config(base: CompressionConfig = PLAIN, **changes: int) -> CompressionConfig:
    return CompressionConfig(**{**base.model_dump(), **changes})


def _bits(key_bits: int, value_bits: int, **changes: int) -> CompressionConfig:
    return _config(key_bits=key_bits, value_bits=value_bits, **changes)


# --- Compression ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompressionCase:
    """One config and head dim; its pages are those of every kind in `PAGE_KINDS`."""

    name: str
    config: CompressionConfig
    head_dim: int = 64
    seeds: int = 1

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Page:
    """Input of one page and the reference's words."""

    kind: str
    keys_CD: NDArray[np.generic]
    values_CD: NDArray[np.generic]
    words: NDArray[np.int32]


def _compression_cases() -> Iterator[CompressionCase]:
    for bits in (2, 3, 4, 8):
        yield CompressionCase(f"bits-{bits}", _bits(bits, bits), seeds=2)
    for key_bits, value_bits in ((2, 8), (3, 2), (4, 3), (8, 4), (16, 4), (4, 16), (16, 16)):
        yield CompressionCase(f"bits-{key_bits}-{value_bits}", _bits(key_bits, value_bits))
    yield CompressionCase("exact", CompressionConfig.preset("exact"))
    for bits in (2, 3, 4, 8):
        rotated = _bits(bits, bits, rotate_keys=1, rotate_values=1, metadata_bits=16)
        yield CompressionCase(f"rotated-{bits}", rotated, seeds=2)
    for head_dim in (16, 48, 80, 96, 128, 256):
        for bits in (2, 3, 4):
            config = _bits(bits, bits, rotate_keys=1, rotate_values=1)
            yield CompressionCase(f"dim-{head_dim}-bits-{bits}", config, head_dim)
    for group_size in (32, 64, 128):
        for metadata_bits in (8, 16):
            config = _config(group_size=group_size, metadata_bits=metadata_bits)
            yield CompressionCase(f"group-{group_size}-metadata-{metadata_bits}", config)
            wide = _config(config, chunk=128)
            yield CompressionCase(
                f"chunk-128-group-{group_size}-metadata-{metadata_bits}", wide, 80
            )
    # More than 99 KB of FP32: the most shared memory that a block of some GPUs can have.
    large = _config(chunk=128, rank=2, outliers=2, rotate_keys=1, rotate_values=1)
    yield CompressionCase("chunk-128-dim-256", large, 256)
    for outliers in (2, 4):
        for metadata_bits in (8, 16):
            config = _bits(2, 3, outliers=outliers, metadata_bits=metadata_bits)
            yield CompressionCase(f"outliers-{outliers}-metadata-{metadata_bits}", config, seeds=2)
    yield CompressionCase("outliers-4-dim-16", _config(outliers=4, rotate_values=1), 16)
    for rank in (1, 2, 4, 8):
        for factor_bits in (4, 8, 16):
            config = _config(rank=rank, factor_bits=factor_bits)
            yield CompressionCase(f"rank-{rank}-factors-{factor_bits}", config)
    for bits in (2, 3, 4, 8):
        for metadata_bits in (8, 16):
            fitted = _bits(bits, bits, fit_ranges=1, metadata_bits=metadata_bits)
            yield CompressionCase(f"fitted-{bits}-metadata-{metadata_bits}", fitted, seeds=2)
    for group_size, chunk, head_dim in ((64, 64, 80), (128, 128, 128), (32, 128, 16)):
        wide = _bits(3, 2, fit_ranges=1, group_size=group_size, chunk=chunk, outliers=2)
        yield CompressionCase(f"fitted-group-{group_size}-dim-{head_dim}", wide, head_dim)
    everything = _bits(
        3, 2, rank=2, outliers=2, chunk=128, rotate_keys=1, rotate_values=1, power_iters=1
    )
    yield CompressionCase("everything-dim-80", everything, 80)
    for name in ("paper-4bit", "paper-2bit"):
        yield CompressionCase(name, CompressionConfig.preset(name), 128)


COMPRESSION_CASES = tuple(_compression_cases())


def _constant_channels(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    return np.broadcast_to(rng.normal(size=shape[1]), shape).astype(np.float32)


def _giant(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    x = rng.normal(size=shape)
    x[tuple(rng.integers(shape))] = 60000
    return x.astype(np.float32)


PAGE_KINDS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy-tails": lambda rng, shape: rng.standard_t(2, size=shape),
    "channel-scales": lambda rng, shape: (
        rng.normal(size=shape) * np.exp(2 * rng.normal(size=shape[1])) + rng.normal(size=shape[1])
    ),
    "low-rank": lambda rng, shape: (
        rng.normal(size=(shape[0], 3)) @ rng.normal(size=(3, shape[1]))
        + 0.01 * rng.normal(size=shape)
    ),
    "far-from-zero": lambda rng, shape: 20 + 0.5 * rng.normal(size=shape),
    "zeros": lambda rng, shape: np.zeros(shape),
    "constant": lambda rng, shape: np.full(shape, 0.3),
    "constant-channels": _constant_channels,
    "ties": lambda rng, shape: rng.integers(-2, 3, size=shape),
    "ramp": lambda rng, shape: np.linspace(-1, 1, shape[0] * shape[1]).reshape(shape),
    "huge": lambda rng, shape: rng.choice([-65504.0, 65504.0, 1.0], size=shape),
    "subnormal": lambda rng, shape: rng.integers(-9, 10, size=shape) * 2.0**-24,
    "giant-outlier": _giant,
    "sparse": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.05),
}
"""Functions of a generator and a shape. None makes a negative zero: which zero a minimum over both
returns is not part of the definition."""


@cache
def pages(case: CompressionCase) -> tuple[Page, ...]:
    """The pages of a row, with the reference's words."""
    made = []
    for kind, make in PAGE_KINDS.items():
        for seed in range(case.seeds):
            rng = np.random.default_rng([seed, crc32(f"{case.name} {kind}".encode())])
            shape = (case.config.chunk, case.head_dim)
            keys, values = (
                np.asarray(make(rng, shape)).astype(case.config.buffer_dtype) + 0 for _ in range(2)
            )
            made.append(
                Page(kind, keys, values, reference.compress_page(keys, values, case.config))
            )
    return tuple(made)


# --- Attention ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionCase:
    """One call on a cache that holds `past` tokens per sequence.

    Attributes:
        name: Test id.
        config: The compression config.
        head_dim: D.
        kv_heads: H.
        group: G = N / H.
        past: Tokens of each sequence before the call.
        new: Valid new tokens of each sequence; S is their maximum, and at least 1.
        softcap: As in the op.
        sliding_window: As in the op.
        sharpness: Factor on scores: large ones make the softmax pick a few tokens.
        dtype: Element type of the activations.
    """

    name: str
    config: CompressionConfig = field(default_factory=CompressionConfig)
    head_dim: int = 64
    kv_heads: int = 1
    group: int = 2
    past: tuple[int, ...] = (150,)
    new: tuple[int, ...] = (1,)
    softcap: float = 0.0
    sliding_window: int = 0
    sharpness: float = 1.0
    dtype: str = "float32"

    def __str__(self) -> str:
        return self.name

    @property
    def scale(self) -> float:
        """Factor of q·k."""
        return self.sharpness * self.head_dim**-0.5


def _attention_cases() -> Iterator[AttentionCase]:
    for key_bits, value_bits in (
        (2, 2), (3, 3), (4, 4), (8, 8), (3, 2), (2, 8), (16, 16), (16, 4), (8, 16)
    ):  # fmt: skip
        for new in (1, 40):
            config = _bits(key_bits, value_bits)
            yield AttentionCase(f"bits-{key_bits}-{value_bits}-new-{new}", config, new=(new,))
    for new in (1, 40):
        yield AttentionCase(f"exact-new-{new}", CompressionConfig.preset("exact"), new=(new,))
    for group_size, metadata_bits, chunk in (
        (32, 8, 128), (32, 16, 64), (64, 8, 64), (64, 16, 128), (128, 8, 128), (128, 16, 64)
    ):  # fmt: skip
        config = _config(group_size=group_size, metadata_bits=metadata_bits, chunk=chunk)
        for new in (2, 33):
            name = f"group-{group_size}-metadata-{metadata_bits}-chunk-{chunk}-new-{new}"
            yield AttentionCase(name, config, head_dim=80, past=(270,), new=(new,))
    for rank, factor_bits in ((1, 4), (2, 8), (4, 16), (8, 4)):
        config = _bits(2, 2, rank=rank, factor_bits=factor_bits)
        for new in (1, 40):
            yield AttentionCase(f"rank-{rank}-factors-{factor_bits}-new-{new}", config, new=(new,))
    for outliers in (2, 4):
        config = _bits(2, 2, outliers=outliers)
        for group, new in ((1, 1), (3, 1), (5, 1), (3, 40)):
            name = f"outliers-{outliers}-group-{group}-new-{new}"
            yield AttentionCase(name, config, group=group, new=(new,))
    for rotate_keys, rotate_values in ((0, 0), (1, 0), (0, 1), (1, 1)):
        config = _config(rotate_keys=rotate_keys, rotate_values=rotate_values)
        yield AttentionCase(f"rotation-{rotate_keys}-{rotate_values}", config, head_dim=96)
    for head_dim in (16, 48, 64, 80, 96, 128, 256):
        for bits, new in ((4, 1), (3, 9), (2, 40)):
            config = _bits(bits, bits, rotate_keys=1, rotate_values=1, sinks=4)
            yield AttentionCase(f"dim-{head_dim}-bits-{bits}", config, head_dim, new=(new,))
    for group in (1, 2, 3, 4, 5, 6, 7, 8, 12):
        yield AttentionCase(f"heads-per-kv-head-{group}", group=group, kv_heads=2)
    for sinks in (0, 4, 64):
        config = _config(sinks=sinks)
        for past in (0, 1, 3, 4, 5, sinks + 63, sinks + 64, sinks + 65, sinks + 200):
            yield AttentionCase(f"sinks-{sinks}-past-{past}", config, past=(past,))
    for new in (1, 2, 5, 8, 9, 16, 17, 70):
        yield AttentionCase(f"new-{new}", past=(131,), new=(new,), kv_heads=2)
    for new in (1, 4, 64, 65, 130, 200):
        yield AttentionCase(f"prompt-{new}", past=(0,), new=(new,), group=3)
    long = CompressionConfig.preset("k2v2")
    yield AttentionCase("split-pages", long, past=(1300,), group=3)
    yield AttentionCase("split-pages-window", long, past=(1300,), sliding_window=300)
    yield AttentionCase("batch-decode", past=(0, 63, 200, 132), new=(1, 1, 1, 1), kv_heads=2)
    yield AttentionCase("batch-ragged", past=(68, 0, 5, 140), new=(5, 70, 1, 63))
    yield AttentionCase("batch-idle-rows", past=(130, 70, 9), new=(0, 4, 0))
    yield AttentionCase("batch-all-idle", past=(130, 9), new=(0, 0))
    for new in (1, 7, 70):
        yield AttentionCase(f"softcap-new-{new}", new=(new,), softcap=2.0, sharpness=4.0)
        for window in (1, 20, 100):
            yield AttentionCase(f"window-{window}-new-{new}", new=(new,), sliding_window=window)
    yield AttentionCase("window-over-everything", sliding_window=4096)
    for new in (1, 40):
        yield AttentionCase(f"sharp-new-{new}", new=(new,), sharpness=30.0)
        for preset in ("k4v4", "k3v2", "paper-2bit", "exact"):
            config = CompressionConfig.preset(preset)
            yield AttentionCase(f"half-{preset}-new-{new}", config, new=(new,), dtype="float16")
            yield AttentionCase(f"brain-{preset}-new-{new}", config, new=(new,), dtype="bfloat16")
    for name, past, new in (
        ("decode", (0, 63, 200, 132), (1, 1, 1, 1)), ("ragged", (68, 0, 5, 140), (5, 70, 1, 63))
    ):  # fmt: skip
        yield AttentionCase(f"brain-{name}", past=past, new=new, kv_heads=2, dtype="bfloat16")
    yield AttentionCase("brain-dim-80-window", head_dim=80, sliding_window=20, dtype="bfloat16")
    for preset in ("paper-4bit", "paper-2bit"):
        config = CompressionConfig.preset(preset)
        yield AttentionCase(preset, config, head_dim=128, group=4, new=(2,))


ATTENTION_CASES = tuple(_attention_cases())


@dataclass(frozen=True)
class State:
    """A cache before or after a call.

    Attributes:
        page_pool: [num_pages, H, page_words] int32.
        residual_buffer: [slots, H, 2, sinks + C, D].
    """

    page_pool: NDArray[np.int32]
    residual_buffer: NDArray[np.generic]

    def copy(self) -> State:
        """Arrays of its own, for an implementation to write to."""
        return State(self.page_pool.copy(), self.residual_buffer.copy())


@dataclass(frozen=True)
class AttentionCall:
    """Inputs of one row, and what the reference makes of them. All arrays are to be left alone.

    Attributes:
        query_BSND: [B, S, N, D] of the case's dtype.
        key_BSHD: [B, S, H, D]; rows at and beyond new_lengths hold NaN, nothing may read them.
        value_BSHD: Likewise.
        page_table: [B, max_pages] int32, pages in no order; unused entries are −1.
        slots: [B] int32.
        past_lengths: [B] int32.
        new_lengths: [B] int32.
        before: State before the call; pages and slots that nobody owns hold noise.
        output_BSND: [B, S, N, D] float32: the expected result.
        lossless_BSND: [B, S, N, D] float32: the result over a cache that compresses nothing.
        after: Expected state.
    """

    query_BSND: NDArray[np.generic]
    key_BSHD: NDArray[np.generic]
    value_BSHD: NDArray[np.generic]
    page_table: NDArray[np.int32]
    slots: NDArray[np.int32]
    past_lengths: NDArray[np.int32]
    new_lengths: NDArray[np.int32]
    before: State
    output_BSND: FloatArray
    lossless_BSND: FloatArray
    after: State


@cache
def attention_call(case: AttentionCase) -> AttentionCall:
    """Build a row's inputs, run the reference on them, and return both."""
    rng = np.random.default_rng(crc32(case.name.encode()))
    config, batch = case.config, len(case.past)
    past, new = (np.array(lengths, np.int32) for lengths in (case.past, case.new))
    seq_len = max(1, *case.new)
    page_table, spare = _page_table(rng, config, past + new)
    cache = _empty_cache(case, config, page_table.size + spare, batch + 1)
    lossless = _empty_cache(case, _lossless(config), page_table.size + spare, batch + 1)
    _fill_with_noise(rng, cache)
    slots = rng.permutation(batch + 1)[:batch].astype(np.int32)
    places = {"page_table": page_table, "slots": slots}

    def activations(length: int, heads: int) -> FloatArray:
        shape = (batch, length, heads, case.head_dim)
        scales = np.exp(0.5 * rng.normal(size=case.head_dim))
        x = rng.normal(size=shape) * scales + rng.normal(size=case.head_dim)
        return x.astype(case.dtype).astype(np.float32)

    if past.any():
        history = [activations(int(past.max()), case.kv_heads) for _ in range(2)]
        empty = np.zeros(batch, np.int32)
        for filled in (cache, lossless):
            filled.append(*history, **places, past_lengths=empty, new_lengths=past)
    before = State(cache.page_pool, cache.residual_buffer).copy()

    lengths = {"past_lengths": past, "new_lengths": new}
    query = activations(seq_len, case.kv_heads * case.group)
    key, value = (activations(seq_len, case.kv_heads) for _ in range(2))
    output, lossless_output = (
        reference.attend(
            query, key, value, held, **places, **lengths,
            scale=case.scale, softcap=case.softcap, sliding_window=case.sliding_window,
        )
        for held in (cache, lossless)
    )  # fmt: skip
    cache.append(key, value, **places, **lengths)
    for b, count in enumerate(new):
        key[b, count:] = value[b, count:] = np.nan
    return AttentionCall(
        query.astype(case.dtype),
        key.astype(case.dtype),
        value.astype(case.dtype),
        **places,
        **lengths,
        before=before,
        output_BSND=output,
        lossless_BSND=lossless_output,
        after=State(cache.page_pool, cache.residual_buffer),
    )


def _page_table(
    rng: np.random.Generator, config: CompressionConfig, lengths: NDArray[np.int32]
) -> tuple[NDArray[np.int32], int]:
    """Give every sequence the pages it needs; return the table and how many ids are nobody's."""
    needed = np.maximum(lengths - config.sinks, 0) // config.chunk
    table = np.full((len(lengths), max(1, int(needed.max()))), -1, np.int32)
    spare = 2
    ids = iter(rng.permutation(table.size + spare))
    for b, count in enumerate(needed):
        table[b, :count] = [next(ids) for _ in range(count)]
    return table, spare


def _lossless(config: CompressionConfig) -> CompressionConfig:
    """Pages of the same tokens, with their values as they are."""
    return CompressionConfig.preset("exact", chunk=config.chunk, sinks=config.sinks)


def _empty_cache(
    case: AttentionCase, config: CompressionConfig, num_pages: int, slots: int
) -> reference.ReferenceCache:
    return reference.ReferenceCache(
        config,
        num_pages=num_pages,
        slots=slots,
        num_kv_heads=case.kv_heads,
        head_dim=case.head_dim,
    )


def _fill_with_noise(rng: np.random.Generator, cache: reference.ReferenceCache) -> None:
    noise = rng.integers(-(2**31), 2**31, size=cache.page_pool.shape)
    cache.page_pool[:] = noise.astype(np.int32)
    cache.residual_buffer[:] = np.nan
