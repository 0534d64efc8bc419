"""Every candidate of the operator benchmark computes attention over its own cache."""

import numpy as np
import pytest

from gear_trt import native, reference
from gear_trt.bench.gear_attention import C_ABI, ONNX_RUNTIME, GearAttention
from gear_trt.bench.grid import Heads, Point, parse_config
from gear_trt.bench.group_query import PEERS, GroupQueryAttention, quantize
from gear_trt.bench.tokens import Judge, Tokens, exact_attention, make_tokens
from gear_trt.reference import ReferenceCache

HEADS = Heads(4, 2, 32)
DECODE = Point(HEADS, 150, 2, 1, 1)
PROMPT = Point(HEADS, 0, 1, 70, 1)
CHUNKED = Point(HEADS, 150, 1, 40, 2)
STORAGES = [storage for forms in PEERS.values() for storage in forms]
NOISE = 1e-10
"""NMSE of FP32 arithmetic."""


def every_row(point):
    return np.arange(point.new_tokens)


@pytest.mark.parametrize("point", [DECODE, PROMPT, CHUNKED], ids=str)
def test_exact_attention_is_the_references(point):
    tokens = make_tokens(point)
    config = parse_config("exact").config
    pages = point.batch * 4
    cache = ReferenceCache(
        config, num_pages=pages, slots=point.batch, num_kv_heads=2, head_dim=HEADS.head_dim
    )
    where = {
        "page_table": np.arange(pages, dtype=np.int32).reshape(point.batch, 4),
        "slots": np.arange(point.batch, dtype=np.int32),
    }
    past = np.full(point.batch, point.context, np.int32)
    cache.append(*tokens.past, **where, past_lengths=0 * past, new_lengths=past)
    want = reference.attend(
        tokens.query_BSND,
        *tokens.new,
        cache,
        **where,
        past_lengths=past,
        new_lengths=np.full(point.batch, point.new_tokens, np.int32),
        scale=HEADS.head_dim**-0.5,
    )
    np.testing.assert_allclose(exact_attention(tokens, every_row(point)), want, atol=1e-5)


def test_scores_have_the_deviation_that_the_module_says():
    tokens = make_tokens(Point(Heads(8, 2, 64), 2000, 1, 1, 1))
    keys_TD = tokens.keys_BTHD[0, :, 0]
    deviations = [
        (keys_TD @ query_D / np.sqrt(64)).std() for query_D in tokens.query_BSND[0, 0, :4]
    ]
    assert 0.5 < np.mean(deviations) < 2


def test_judge():
    tokens = make_tokens(CHUNKED)
    exact = exact_attention(tokens, every_row(CHUNKED))
    judge = Judge(tokens)
    assert judge.error(exact) == 0
    assert judge.error(0 * exact) == 1
    assert judge.error(1.1 * exact) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("point", [DECODE, PROMPT, CHUNKED], ids=str)
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_peer_attends_over_its_cache(point, storage):
    """What ONNX Runtime gives is exact attention over the values that its cache holds."""
    tokens = make_tokens(point)
    output = GroupQueryAttention(tokens, point, "peer", storage).output()
    keys, values = (_as_held(array, storage) for array in (tokens.keys_BTHD, tokens.values_BTHD))
    held = Tokens(tokens.query_BSND, keys, values, tokens.context)
    tolerance = 1e-5 if storage.bits == 16 else NOISE
    assert Judge(held).error(output) < tolerance
    assert Judge(tokens).error(output) < {32: NOISE, 16: 1e-5, 8: 0.05, 4: 2.0}[storage.bits]


def _as_held(x_BTHD, storage):
    if storage.granularity is None:
        return x_BTHD.astype(storage.dtype).astype(np.float32)
    limit = 2 ** (storage.bits - 1)
    axes = (0, 1) if storage.granularity == "per_channel" else None
    scale = np.abs(x_BTHD).max(axis=axes) / np.float32(limit - 1)
    return (np.clip(np.rint(x_BTHD / scale), -limit, limit - 1) * scale).astype(np.float32)


def test_four_bit_codes_share_a_byte_low_nibble_first():
    (storage, _) = PEERS["ort-int4"]
    codes = quantize(np.array([[[[-8.0, 7.0, 0.5, 99.0]]]], np.float32), np.ones(1), storage)
    assert codes.tolist() == [[[[0xF0, 0xF8]]]]


@pytest.mark.parametrize("host", [ONNX_RUNTIME, C_ABI])
@pytest.mark.parametrize("point", [DECODE, PROMPT, CHUNKED], ids=str)
def test_lossless_pages_give_exact_attention(point, host):
    tokens = make_tokens(point)
    candidate = GearAttention(tokens, point, "gear exact", parse_config("exact"), host=host)
    assert Judge(tokens).error(candidate.output()) < NOISE


def test_hosts_and_copies_give_the_same():
    tokens = make_tokens(DECODE)
    named = parse_config("k4v4+rank=2,outliers=2")
    outputs = []
    for host in (ONNX_RUNTIME, C_ABI):
        candidate = GearAttention(tokens, DECODE, "gear", named, host=host, copies=3)
        plain, filling = candidate.timed()
        assert (plain.copies, filling.copies) == (3, 3)
        for copy in range(3):
            plain.call(copy)
            outputs.append(candidate.output().copy())
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])
    assert 0 < Judge(tokens).error(outputs[0]) < 0.1


def test_errors_fall_as_bits_rise():
    tokens = make_tokens(DECODE)
    errors = [
        Judge(tokens).error(GearAttention(tokens, DECODE, name, parse_config(name)).output())
        for name in ("k2v2", "k4v4", "k4v4+key_bits=8,value_bits=8", "fp16")
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_filling_call_completes_a_page():
    """The second kind of call compresses; the first does not touch a page."""
    tokens = make_tokens(DECODE)
    candidate = GearAttention(tokens, DECODE, "gear", parse_config("k4v4"))
    pool = candidate._caches[0].page_pools[0]
    before = pool.copy()
    plain, filling = candidate.timed()
    plain.call(0)
    np.testing.assert_array_equal(pool, before)
    filling.call(0)
    assert (pool != before).any()


def test_one_call_in_a_chunk_pays_for_compression():
    candidate = GearAttention(make_tokens(DECODE), DECODE, "gear", parse_config("k4v4"))
    plain, filling = (timed.name for timed in candidate.timed())
    times = {plain: [1.0, 1.0, 1.0], filling: [65.0, 1.0, 0.5]}
    assert candidate.seconds(times) == [2.0, 1.0, 1.0]
    assert candidate.compression_share({plain: [1.0], filling: [65.0]}) == 0.5


def test_bytes_read_are_pages_and_waiting_rows():
    candidate = GearAttention(make_tokens(DECODE), DECODE, "gear", parse_config("k4v4"))
    pages, waiting_and_sinks = 2, 150 - 2 * 64
    page = 2 * 592 * 4  # KV heads · words · bytes
    row = 2 * 2 * 32 * 2  # KV heads · sides · head_dim · bytes
    assert candidate.read_bytes == 2 * (pages * page + waiting_and_sinks * row)
    assert candidate.bytes_per_token == page / 64


def test_instruction_set_is_used():
    chosen = native.instruction_set()
    try:
        named = parse_config("k4v4")
        candidate = GearAttention(
            make_tokens(DECODE), DECODE, "gear", named, instruction_set="scalar"
        )
        candidate.output()
        assert native.instruction_set() == "scalar" == candidate.facts.instruction_set
    finally:
        native.use_instruction_set(chosen)
