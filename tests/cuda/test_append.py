"""What a call leaves in the cache: by the attention kernel, or by the compression kernel."""

import numpy as np
import pytest

from gear_trt import c_api, cuda
from tests.cases import ATTENTION_CASES, AttentionCase, attention_call
from tests.plugins.checks import (
    TOKEN_STEPS,
    assert_states_equal,
    check_that_steps_do_not_matter,
    run_call,
    run_guarded,
)
from tests.plugins.test_errors import BEYOND_HALF, CASE, REFUSALS, beyond_half, with_idle_rows

ONLY_THE_HOST_SEES = ("slot-shared", "page-shared")
"""Faults between sequences: a kernel would have to compare them all."""


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_the_cache_equals_the_reference(case, emulated):
    call = attention_call(case)
    _, state = run_guarded(emulated.attention, case, call)
    assert_states_equal(state, call.after, case, call)


@pytest.mark.parametrize("steps", TOKEN_STEPS, ids=len)
@pytest.mark.parametrize("preset", ["k4v4", "paper-2bit", "exact"])
def test_the_cache_does_not_depend_on_how_tokens_come(preset, steps, emulated):
    check_that_steps_do_not_matter(emulated.attention, preset, steps)


@pytest.mark.parametrize("name", sorted(REFUSALS.keys() - set(ONLY_THE_HOST_SEES)))
def test_a_fault_is_reported_in_the_words_of_the_cpu(name, emulated, thread_order):
    change, message = REFUSALS[name]
    call = attention_call(CASE)
    inputs = {
        field: np.nan_to_num(array) if field.startswith(("key", "value")) else array.copy()
        for field, array in call.__dict__.items()
        if isinstance(array, np.ndarray)
    }
    change(inputs)
    call = type(call)(**{**call.__dict__, **inputs})

    def attention(*arguments, **options):
        with pytest.raises(ValueError, match=message):
            emulated.attention(*arguments, layer=7, **options)

    _, state = run_guarded(attention, CASE, call)
    fine = [b for b in range(3) if f"sequence {b}" not in message]
    for b in fine:
        slot = call.slots[b]
        if list(call.slots).count(slot) > 1:
            continue
        np.testing.assert_array_equal(
            state.residual_buffer[slot], call.after.residual_buffer[slot], f"sequence {b}"
        )


@pytest.mark.parametrize("group", [2, 64], ids=["decode", "prefill"])
def test_bfloat16_that_half_cannot_hold(group, emulated):
    case, call = beyond_half(group)
    state = call.before.copy()
    with pytest.raises(ValueError, match=BEYOND_HALF):
        run_call(emulated.attention, case, call, state)
    before = call.before.residual_buffer
    changed = np.flatnonzero((state.residual_buffer != before) & ~np.isnan(before))
    assert changed.size
    assert np.isfinite(state.residual_buffer.ravel()[changed]).all()


@pytest.mark.parametrize("number", [-1, 3])
def test_types_without_a_number_are_refused(number, emulated, monkeypatch):
    case = AttentionCase("number", past=(3,))
    fill_in = c_api.attention_call

    def with_number(*arguments, **options):
        call = fill_in(*arguments, **options)
        call.data_type = number
        assert cuda.workspace_bytes(call) == 0
        return call

    monkeypatch.setattr(c_api, "attention_call", with_number)
    call = attention_call(case)
    with pytest.raises(ValueError, match=rf"data_type is {number}, must be in 0\.\.2"):
        run_call(emulated.attention, case, call, call.before.copy())


def test_idle_rows_may_hold_anything(emulated):
    call = with_idle_rows(attention_call(CASE))
    output, _ = run_guarded(emulated.attention, CASE, call)
    assert output[0, :2].any()
    assert not output[1:].any()


def test_the_workspace_must_fit(emulated, monkeypatch):
    case = AttentionCase("workspace", past=(70,))
    call = attention_call(case)
    monkeypatch.setattr(cuda, "workspace_bytes", lambda _: 100)
    with pytest.raises(ValueError, match=r"workspace has 100 bytes, needs \d+"):
        run_guarded(emulated.attention, case, call)
