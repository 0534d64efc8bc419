import numpy as np
import pytest

from gear_trt import native
from tests.cases import ATTENTION_CASES, AttentionCase, attention_call
from tests.plugins.checks import (
    TOKEN_STEPS,
    TOLERANCE,
    check_attention,
    check_that_steps_do_not_matter,
    check_that_ties_go_to_even,
    nmse,
    run_call,
)

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
    return run_call(native.attention, case, call, state, **options)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_output_and_state_equal_the_reference(case, instruction_set):
    call = attention_call(case)
    check_attention(native.attention, case, tolerance(case, call, instruction_set))


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


@pytest.mark.parametrize("steps", TOKEN_STEPS, ids=len)
@pytest.mark.parametrize("preset", ["k4v4", "paper-2bit", "exact"])
def test_the_cache_does_not_depend_on_how_tokens_come(preset, steps, instruction_set):
    check_that_steps_do_not_matter(native.attention, preset, steps)


def test_bfloat16_is_rounded_to_nearest_even(instruction_set):
    check_that_ties_go_to_even(native.attention, 2)


def test_pages_behind_the_window_may_be_gone(instruction_set):
    case = AttentionCase("freed", past=(400,), new=(3,), sliding_window=70)
    call = attention_call(case)
    call.page_table[0, :4] = -1
    output = run(case, call, call.before.copy())
    assert nmse(output, call.output_BSND) <= tolerance(case, call, instruction_set)
