"""The attention kernels on the emulated GPU: the case table, and what only they have."""

import dataclasses

import numpy as np
import pytest

from gear_trt import reference
from gear_trt.reference.attention import decompress_sequence
from gear_trt.spec import CompressionConfig
from tests.cases import ATTENTION_CASES, AttentionCase, attention_call
from tests.plugins.checks import (
    check_attention,
    check_that_ties_go_to_even,
    nmse,
    run_call,
    run_guarded,
)

TOLERANCE = 2e-6
"""Largest NMSE. Operands of tensor cores are FP16, so that a score is off by about 2^-12 of what
varies inside its group; the worst row of the table measures 5.4e-7. `test_it_is_a_fraction...`
holds it against the quantization error."""

ROUNDING = {"bfloat16": 4e-6}
"""Added to it for outputs of a type that rounds more than the kernels do."""

SHARP_TOLERANCE = 3e-5
"""Of FP16 prefill with scores 30 times as large, whose keys are rounded once more: 1.04e-5."""


SUFFIXES = {"float16": "half", "bfloat16": "brain"}


def _narrow(case, dtype="float16", **changes):
    name = f"{case.name}-{SUFFIXES[dtype]}"
    return dataclasses.replace(case, dtype=dtype, name=name, **changes)


def _tolerance(case):
    return TOLERANCE + ROUNDING.get(case.dtype, 0.0)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_output_and_state_equal_the_reference(case, emulated):
    check_attention(emulated.attention, case, _tolerance(case))


# Calls of more than 128 rows: the prefill kernel. The table's long calls, with more heads, in FP16;
# some of them, that have new tokens between all others, in bfloat16.
PREFILL_CASES = [
    _narrow(case, dtype, group=8, head_dim=64 if case.head_dim == 80 else case.head_dim)
    for case in ATTENTION_CASES
    if max(case.new) > 16 and case.head_dim in (64, 80, 96, 128)
    for dtype in (
        ("float16", "bfloat16")
        if case.name.startswith(("brain", "dim", "window", "batch", "prompt-130", "softcap"))
        else ("float16",)
    )
]


@pytest.mark.parametrize("case", PREFILL_CASES, ids=str)
def test_prefill_equals_the_reference(case, emulated):
    tolerance = SHARP_TOLERANCE if case.sharpness > 4 else _tolerance(case)
    check_attention(emulated.attention, case, tolerance)


@pytest.mark.parametrize("group", [2, 80], ids=["decode", "prefill"])
def test_bfloat16_is_rounded_to_nearest_even(group, emulated):
    check_that_ties_go_to_even(emulated.attention, group)


@pytest.mark.parametrize("new", range(2, 17))
def test_speculative_tokens_and_many_heads(new, emulated):
    group = (4, 7, 16)[new % 3]
    case = AttentionCase(f"speculative-{new}", past=(333, 64), new=(new, new // 2), group=group)
    check_attention(emulated.attention, case, TOLERANCE)


THREADS_MATTER = [
    case
    for case in [*ATTENTION_CASES, *PREFILL_CASES]
    if case.name.startswith(("split", "outliers-4", "batch", "paper", "rank-8"))
]


@pytest.mark.parametrize("case", THREADS_MATTER, ids=str)
def test_the_order_of_threads_changes_nothing(case, emulated, monkeypatch):
    call = attention_call(case)
    outputs = []
    for order in ("forward", "reverse"):
        monkeypatch.setenv("GEAR_EMULATOR_ORDER", order)
        outputs.append(run_guarded(emulated.attention, case, call)[0])
    np.testing.assert_array_equal(*outputs)


LONG = AttentionCase(
    "many-splits", CompressionConfig.preset("k2v2"), past=(5000, 70), new=(1, 1), group=4
)


def test_a_call_can_be_replayed(emulated):
    """Counters of split sequences are 0 again: later calls on the same workspace see no trace."""
    call = attention_call(LONG)
    outputs = [run_call(emulated.attention, LONG, call, call.before.copy()) for _ in range(3)]
    assert nmse(outputs[0], call.output_BSND) <= TOLERANCE
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def test_pages_behind_the_window_may_be_gone(emulated):
    for changes in ({}, {"dtype": "float16", "group": 64}):
        case = AttentionCase("freed", past=(400,), new=(3,), sliding_window=70, **changes)
        call = attention_call(case)
        call.page_table[0, :4] = -1
        output = run_call(emulated.attention, case, call, call.before.copy())
        assert nmse(output, call.output_BSND) <= TOLERANCE


def _quantization_error(case):
    """NMSE of the reference with packed pages, against the same history held exactly."""
    rng = np.random.default_rng(0)
    past, dim = case.past[0], case.head_dim
    history = [rng.normal(size=(1, past, 1, dim)).astype(np.float16) for _ in range(2)]
    query = rng.normal(size=(1, 1, case.group, dim)).astype(np.float32)
    key, value = (rng.normal(size=(1, 1, 1, dim)).astype(np.float32) for _ in range(2))
    fixed = {
        "page_table": np.arange(past // case.config.chunk + 1, dtype=np.int32)[None],
        "slots": np.zeros(1, np.int32),
    }
    new = {"past_lengths": np.array([past], np.int32), "new_lengths": np.ones(1, np.int32)}
    outputs, caches = [], []
    for config in (case.config, CompressionConfig.preset("exact")):
        cache = reference.ReferenceCache(
            config, num_pages=fixed["page_table"].size, slots=1, num_kv_heads=1, head_dim=dim
        )
        cache.append(
            *(x.astype(np.float32) for x in history),
            **fixed,
            past_lengths=np.zeros(1, np.int32),
            new_lengths=np.array([past], np.int32),
        )
        outputs.append(reference.attend(query, key, value, cache, **fixed, **new, scale=case.scale))
        caches.append(cache)
    return nmse(*outputs), (query, key, value), caches[0], fixed | new, outputs[0]


@pytest.mark.parametrize("sharpness", [1.0, 8.0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_is_a_fraction_of_the_quantization_error(bits, sharpness, emulated):
    config = CompressionConfig(key_bits=bits, value_bits=bits)
    case = AttentionCase("error", config, past=(400,), group=4, sharpness=sharpness)
    lost, tensors, cache, places, expected = _quantization_error(case)
    output = emulated.attention(
        *tensors,
        page_pool=cache.page_pool,
        residual_buffer=cache.residual_buffer,
        config=config,
        scale=case.scale,
        **places,
    )
    assert nmse(output, expected) < 0.25 * lost


MANY_TOKENS = _narrow(LONG, past=(300, 70), new=(40, 7), group=4)


@pytest.mark.parametrize("case", [LONG, MANY_TOKENS], ids=str)
def test_log_sum_exp(case, emulated):
    call = attention_call(case)
    batch, seq_len, heads, dim = call.query_BSND.shape
    actual = np.full((batch, seq_len, heads), np.nan, np.float32)
    cache = reference.ReferenceCache(
        case.config,
        num_pages=len(call.before.page_pool),
        slots=len(call.before.residual_buffer),
        num_kv_heads=case.kv_heads,
        head_dim=dim,
    )
    cache.page_pool, cache.residual_buffer = call.before.page_pool, call.before.residual_buffer
    run_call(emulated.attention, case, call, call.before.copy(), log_sum_exp=actual)
    for b, (past, new) in enumerate(zip(case.past, case.new, strict=True)):
        for n in range(heads):
            head = n // case.group
            keys, _ = decompress_sequence(cache, call.page_table[b], int(call.slots[b]), past, head)
            keys = np.concatenate([keys, call.key_BSHD[b, :new, head].astype(np.float32)])
            for s in range(new):
                query = call.query_BSND[b, s, n].astype(np.float64)
                scores = keys[: past + s + 1].astype(np.float64) @ query * case.scale
                expected = scores.max() + np.log(np.exp(scores - scores.max()).sum())
                assert abs(actual[b, s, n] - expected) < 5e-3
        assert np.isneginf(actual[b, new:]).all()
