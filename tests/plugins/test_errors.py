"""Calls that are refused: the text names what is wrong, and the cache stays as it was."""

import numpy as np
import pytest

from gear_trt import c_api, native
from gear_trt.spec import CompressionConfig
from tests.cases import AttentionCase, attention_call
from tests.plugins.test_attention import run

CASE = AttentionCase("refused", past=(130, 60, 9), new=(2, 70, 3), kv_heads=2)


def _set(name, index, value):
    def change(inputs):
        inputs[name][index] = value

    return change


REFUSALS = {
    "key-nan": (_set("key_BSHD", (1, 7, 1, 3), np.nan),
        "layer 7, KV head 1, token 67 of sequence 1: key has the value nan, which is not finite"),
    "value-infinite": (_set("value_BSHD", (0, 1, 0, 63), -np.inf),
        "layer 7, KV head 0, token 131 of sequence 0: value has the value -inf, "
        "which is not finite"),
    "key-beyond-half": (_set("key_BSHD", (2, 0, 1, 0), 65505.0),
        "layer 7, KV head 1, token 9 of sequence 2: key has the value 65505.0*, "
        "which is beyond FP16"),
    "slot-too-large": (_set("slots", 1, 4), "slot 4 of sequence 1 is outside .* 4"),
    "slot-negative": (_set("slots", 0, -1), "slot -1 of sequence 0 is outside .* 4"),
    "page-read": (_set("page_table", (0, 0), 99), "page 99 of sequence 0 is outside the pool's"),
    "page-written": (_set("page_table", (1, 0), -1), "page -1 of sequence 1 is outside the pool's"),
    "past-negative": (_set("past_lengths", 2, -5), "past_lengths of sequence 2 is -5"),
    "past-too-long": (_set("past_lengths", 0, 260),
        "length 262 of sequence 0 needs 4 pages, page_table has 2"),
    "new-too-long": (_set("new_lengths", 2, 71),
        r"new_lengths of sequence 2 is 71, must be in 0\.\.70"),
    "new-negative": (_set("new_lengths", 2, -1), "new_lengths of sequence 2 is -1"),
    "slot-shared": (lambda inputs: inputs["slots"].fill(2), "slot 2 would be written twice"),
    "page-shared": (lambda inputs: _share_a_page(inputs), "page 1 would be written twice"),
}  # fmt: skip


def _share_a_page(inputs):
    inputs["past_lengths"][:] = (60, 60, 9)
    inputs["new_lengths"][:] = (70, 70, 3)
    inputs["page_table"][:2, 0] = 1


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_before_anything_is_written(name, instruction_set):
    change, message = REFUSALS[name]
    call = attention_call(CASE)
    inputs = {
        field: array.copy()
        for field, array in call.__dict__.items()
        if isinstance(array, np.ndarray) and field not in ("output_BSND", "lossless_BSND")
    }
    for side in ("key_BSHD", "value_BSHD"):
        inputs[side][np.isnan(inputs[side])] = 0
    change(inputs)
    state = call.before.copy()
    with pytest.raises(ValueError, match=message):
        native.attention(
            **inputs,
            page_pool=state.page_pool,
            residual_buffer=state.residual_buffer,
            config=CASE.config,
            scale=CASE.scale,
            layer=7,
        )
    assert state.page_pool.tobytes() == call.before.page_pool.tobytes()
    assert state.residual_buffer.tobytes() == call.before.residual_buffer.tobytes()


def test_a_float32_cache_takes_what_half_cannot_hold(instruction_set):
    case = AttentionCase("large", CompressionConfig.preset("exact"), past=(3,), new=(2,))
    call = attention_call(case)
    call.key_BSHD[0, 0, 0, 0] = 1e30
    run(case, call, call.before.copy())


def beyond_half(group=2):
    """A case in bfloat16 whose second new key is finite and beyond FP16, and its call."""
    case = AttentionCase("beyond", past=(130,), new=(3,), group=group, dtype="bfloat16")
    call = attention_call(case)
    key = call.key_BSHD.copy()
    key[0, 1, 0, 9] = 65536.0
    return case, type(call)(**{**call.__dict__, "key_BSHD": key})


BEYOND_HALF = "KV head 0, token 131 of sequence 0: key has the value 65536.0*, which is beyond FP16"


def test_bfloat16_that_half_cannot_hold(instruction_set):
    case, call = beyond_half()
    state = call.before.copy()
    with pytest.raises(ValueError, match=BEYOND_HALF):
        run(case, call, state)
    assert state.residual_buffer.tobytes() == call.before.residual_buffer.tobytes()


@pytest.mark.parametrize("number", [-1, 3])
def test_types_without_a_number_are_refused(number):
    shape = c_api.AttentionShape(
        CompressionConfig(), "float32", batch=1, seq_len=1, num_heads=1, num_kv_heads=1,
        head_dim=16, num_pages=1, num_slots=1, max_pages=1,
    )  # fmt: skip
    call = c_api.attention_call(shape, {}, scale=1.0)
    call.data_type = number
    with pytest.raises(ValueError, match=rf"data_type is {number}, must be in 0\.\.2"):
        native.run_attention(call)


def with_idle_rows(call):
    """The same call, with new tokens in the first sequence only and nonsense in the others."""
    nonsense = {"slots": -1, "page_table": -7, "past_lengths": 10**6, "new_lengths": 0}
    changed = {name: getattr(call, name).copy() for name in nonsense}
    for name, value in nonsense.items():
        changed[name][1:] = value
    return type(call)(**{**call.__dict__, **changed})


def test_idle_rows_may_hold_anything(instruction_set):
    call = with_idle_rows(attention_call(CASE))
    output = run(CASE, call, call.before.copy())
    assert output[0, :2].any()
    assert not output[1:].any()


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ({"scale": np.nan}, "scale is not finite"),
        ({"softcap": -1.0}, "softcap must be finite and not negative"),
        ({"sliding_window": -1}, "sliding_window is -1"),
    ],
)
def test_attributes_are_checked(attribute, message):
    case = AttentionCase("attributes", past=(3,))
    call = attention_call(case)
    options = {"scale": 1.0, **attribute}
    with pytest.raises(ValueError, match=message):
        native.attention(
            call.query_BSND, call.key_BSHD, call.value_BSHD,
            page_pool=call.before.page_pool, residual_buffer=call.before.residual_buffer,
            page_table=call.page_table, slots=call.slots, past_lengths=call.past_lengths,
            new_lengths=call.new_lengths, config=case.config, **options,
        )  # fmt: skip


def test_heads_must_divide():
    case = AttentionCase("heads", past=(3,), kv_heads=2)
    call = attention_call(case)
    odd = np.zeros((1, 1, 3, 64), np.float32)
    with pytest.raises(ValueError, match="num_heads is 3, must be a multiple of num_kv_heads 2"):
        run(case, type(call)(**{**call.__dict__, "query_BSND": odd}), call.before.copy())


def test_arrays_of_another_shape_are_refused():
    case = AttentionCase("shapes", past=(3,))
    call = attention_call(case)
    for change, message in (
        ({"slots": np.zeros(2, np.int32)}, "slots has shape"),
        ({"key_BSHD": call.key_BSHD[..., :32]}, "key_BSHD has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            run(case, type(call)(**{**call.__dict__, **change}), call.before.copy())
    state = call.before.copy()
    with pytest.raises(ValueError, match="page_pool is"):
        run(case, call, type(state)(state.page_pool[..., :-1], state.residual_buffer))
    with pytest.raises(ValueError, match="residual_buffer is"):
        run(case, call, type(state)(state.page_pool, state.residual_buffer.astype(np.float32)))
