import ml_dtypes  # noqa: F401 - makes numpy know bfloat16 by its name
import numpy as np
import pytest

from gear_trt.reference import ReferenceCache, attend, decompress_sequence
from gear_trt.spec import CompressionConfig

HEADS, HEAD_DIM = 2, 16
CONFIG = CompressionConfig.preset("k4v2", rank=2, outliers=2)


def new_cache(config, *, slots=2, num_pages=8):
    return ReferenceCache(
        config, num_pages=num_pages, slots=slots, num_kv_heads=HEADS, head_dim=HEAD_DIM
    )


def lengths(*values):
    return np.array(values, np.int32)


def random_rows(batch, tokens, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, batch, tokens, HEADS, HEAD_DIM)).astype(np.float32)


def append(cache, keys, values, *, past, new):
    cache.append(
        keys,
        values,
        page_table=np.array([[5, 2, 0], [1, 3, 4]], np.int32)[: len(past)],
        slots=lengths(1, 0)[: len(past)],
        past_lengths=lengths(*past),
        new_lengths=lengths(*new),
    )


@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("chunk", [64, 128])
def test_append_token_by_token_equals_append_in_bulk(sinks, chunk):
    config = CONFIG.model_copy(update={"sinks": sinks, "chunk": chunk})
    keys, values = random_rows(2, 2 * chunk + 9)
    bulk, stepwise = new_cache(config), new_cache(config)
    totals = (2 * chunk + 9, chunk + sinks - 1)
    append(bulk, keys, values, past=(0, 0), new=totals)
    for token in range(max(totals)):
        append(
            stepwise,
            keys[:, token : token + 1],
            values[:, token : token + 1],
            past=(token, min(token, totals[1])),
            new=(1, int(token < totals[1])),
        )
    np.testing.assert_array_equal(stepwise.page_pool, bulk.page_pool)
    np.testing.assert_array_equal(stepwise.residual_buffer, bulk.residual_buffer)
    assert bulk.page_pool[5].any()
    assert bulk.page_pool[2].any()
    assert not bulk.page_pool[1].any(), "a chunk that lacks one token must not be compressed"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_activations_are_those_of_float32_rounded_once(dtype):
    rows = random_rows(2, 70).astype(dtype)
    query = rows[0][:, :, [0, 0, 1]][:, :, [0, 1, 2, 2]]
    outputs, states = [], []
    for keys, values, queries in ((*rows, query), (*rows.astype(np.float32), query.astype("f4"))):
        cache = new_cache(CONFIG)
        where = {
            "page_table": np.array([[5, 2, 0], [1, 3, 4]], np.int32), "slots": lengths(1, 0),
            "past_lengths": lengths(0, 0), "new_lengths": lengths(70, 9),
        }  # fmt: skip
        outputs.append(attend(queries, keys, values, cache, **where, scale=0.25))
        cache.append(keys, values, **where)
        states.append((cache.page_pool, cache.residual_buffer))
    assert outputs[0].dtype == dtype
    np.testing.assert_array_equal(outputs[0], outputs[1].astype(dtype))
    for narrow, wide in zip(*states, strict=True):
        np.testing.assert_array_equal(narrow, wide)


def test_pages_never_change_once_written():
    keys, values = random_rows(2, 200)
    cache = new_cache(CONFIG)
    append(cache, keys[:, :68], values[:, :68], past=(0, 0), new=(68, 68))
    first = cache.page_pool[[5, 1]].copy()
    append(cache, keys[:, 68:], values[:, 68:], past=(68, 68), new=(132, 132))
    np.testing.assert_array_equal(cache.page_pool[[5, 1]], first)


def test_decompressed_sequence_has_every_token_in_order():
    config = CompressionConfig.preset("fp16", sinks=4)
    keys, values = random_rows(1, 150)
    cache = new_cache(config)
    append(cache, keys, values, past=(0,), new=(150,))
    got_keys, got_values = decompress_sequence(cache, lengths(5, 2, 0), 1, 150, 1)
    np.testing.assert_array_equal(got_keys, keys[0, :, 1].astype(np.float16))
    np.testing.assert_array_equal(got_values, values[0, :, 1].astype(np.float16))


@pytest.mark.parametrize(("softcap", "window"), [(0.0, 0), (5.0, 0), (0.0, 7), (0.0, 70)])
def test_attention_over_an_exact_cache_is_standard_attention(softcap, window):
    config = CompressionConfig.preset("exact")
    keys, values = random_rows(1, 140)
    query = np.random.default_rng(1).normal(size=(1, 140, 3 * HEADS, HEAD_DIM)).astype(np.float32)
    cache = new_cache(config)
    append(cache, keys[:, :100], values[:, :100], past=(0,), new=(100,))
    got = attend(
        query[:, 100:],
        keys[:, 100:],
        values[:, 100:],
        cache,
        page_table=np.array([[5, 2, 0]], np.int32),
        slots=lengths(1),
        past_lengths=lengths(100),
        new_lengths=lengths(40),
        scale=0.25,
        softcap=softcap,
        sliding_window=window,
    )
    scores = np.einsum("snd,tnd->nst", query[0, 100:], keys[0].repeat(3, axis=1)) * 0.25
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    position, other = np.arange(100, 140)[:, None], np.arange(140)[None]
    visible = (other <= position) & ((position - other < window) if window else True)
    weights = np.exp(np.where(visible, scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    want = np.einsum("nst,tnd->snd", weights, values[0].repeat(3, axis=1))
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_rows_beyond_the_new_length_are_zero():
    keys, values = random_rows(2, 6)
    cache = new_cache(CONFIG)
    got = attend(
        keys,
        keys,
        values,
        cache,
        page_table=np.zeros((2, 1), np.int32),
        slots=lengths(0, 1),
        past_lengths=lengths(0, 0),
        new_lengths=lengths(6, 2),
        scale=1.0,
    )
    assert got[1, :2].any()
    assert not got[1, 2:].any()
