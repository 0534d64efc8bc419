import numpy as np
import pytest

from gear_trt import native
from gear_trt.reference.cache import num_pages
from tests.cases import ATTENTION_CASES, AttentionCase, attention_call
from tests.plugins.checks import Guarded, assert_pages_equal, nmse

TOLERANCE = {"float32": 1e-10, "float16": 1e-6}
"""Largest NMSE by output type; rounding to FP16 alone costs 5e-8."""

FEW_ROWS = 16
"""Rows (tokens times heads) of a sequence that meet codes; for more a page is decoded to floats."""

LARGEST_SHARE = 0.25
"""Error of integer products as a share of the error of the quantization itself."""


def tolerance(case, call, instruction_set):
    """Largest NMSE to the reference: of few rows, all paths but one multiply codes as integers."""
    uses_integers = any(0 < new * case.group <= FEW_ROWS for new in case.new)
    if instruction_set == "scalar" or not uses_integers:
        return TOLERANCE[case.dtype]
    return TOLERANCE[case.dtype] + LARGEST_SHARE**2 * nmse(call.output_BSND, call.lossless_BSND)


def run(case, call, state, **options):
    """Run the kernels on `state`; return the output."""
    return native.attention(
        call.query_BSND,
        call.key_BSHD,
        call.value_BSHD,
        page_pool=state.page_pool,
        residual_buffer=state.residual_buffer,
        page_table=call.page_table,
        slots=call.slots,
        past_lengths=call.past_lengths,
        new_lengths=call.new_lengths,
        config=case.config,
        scale=case.scale,
        softcap=case.softcap,
        sliding_window=case.sliding_window,
        **options,
    )


def assert_states_equal(actual, expected, case, call):
    """The buffer and every page bit for bit, but for fitted fields of pages of this call."""
    np.testing.assert_array_equal(actual.residual_buffer, expected.residual_buffer)
    written = {
        int(page)
        for row, past, new in zip(call.page_table, call.past_lengths, call.new_lengths, strict=True)
        for page in row[num_pages(past, case.config) : num_pages(past + new, case.config)]
    }
    for page, heads in enumerate(expected.page_pool):
        for head, words in enumerate(heads):
            if page in written:
                assert_pages_equal(actual.page_pool[page, head], words, case.config, case.head_dim)
            else:
                np.testing.assert_array_equal(actual.page_pool[page, head], words)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_output_and_state_equal_the_reference(case, instruction_set):
    call = attention_call(case)
    pool, buffer = Guarded(call.before.page_pool), Guarded(call.before.residual_buffer)
    out = Guarded(np.full(call.query_BSND.shape, np.nan, case.dtype))
    state = type(call.before)(pool.array, buffer.array)
    run(case, call, state, out=out.array)
    for guarded in (pool, buffer, out):
        guarded.check()
    assert nmse(out.array, call.output_BSND) <= tolerance(case, call, instruction_set)
    for row, count in zip(out.array, case.new, strict=True):
        assert not row[count:].any()
    assert_states_equal(state, call.after, case, call)


THREADED = [case for case in ATTENTION_CASES if case.name.startswith(("split", "batch", "prompt"))]


@pytest.mark.parametrize("case", THREADED, ids=str)
def test_the_number_of_threads_changes_nothing(case):
    call = attention_call(case)
    results = []
    for num_threads in (1, 2, 5):
        state = call.before.copy()
        output = run(case, call, state, num_threads=num_threads)
        results.append((output, state.page_pool, state.residual_buffer))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("steps", [(150,), (1,) * 150, (70, 1, 1, 64, 14), (3, 147)], ids=len)
@pytest.mark.parametrize("preset", ["k4v4", "paper-2bit", "exact"])
def test_the_cache_does_not_depend_on_how_tokens_come(preset, steps, instruction_set):
    case = AttentionCase("prompt", past=(0,), new=(150,), kv_heads=2)
    case = AttentionCase(**{**case.__dict__, "config": case.config.preset(preset)})
    call = attention_call(case)
    whole = call.before.copy()
    run(case, call, whole)
    state = call.before.copy()
    past = 0
    for count in steps:
        part = slice(past, past + count)
        native.attention(
            call.query_BSND[:, part],
            call.key_BSHD[:, part],
            call.value_BSHD[:, part],
            page_pool=state.page_pool,
            residual_buffer=state.residual_buffer,
            page_table=call.page_table,
            slots=call.slots,
            past_lengths=np.array([past], np.int32),
            new_lengths=np.array([count], np.int32),
            config=case.config,
            scale=case.scale,
        )
        past += count
    assert state.page_pool.tobytes() == whole.page_pool.tobytes()
    assert state.residual_buffer.tobytes() == whole.residual_buffer.tobytes()


def test_pages_behind_the_window_may_be_gone(instruction_set):
    case = AttentionCase("freed", past=(400,), new=(3,), sliding_window=70)
    call = attention_call(case)
    call.page_table[0, :4] = -1
    output = run(case, call, call.before.copy())
    assert nmse(output, call.output_BSND) <= tolerance(case, call, instruction_set)
