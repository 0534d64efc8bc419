"""How results of the kernels are compared with the reference's."""

import dataclasses
import platform

import numpy as np

from gear_trt.reference.cache import num_pages
from gear_trt.reference.page import decode_side
from gear_trt.spec import CompressionConfig, page_layout
from tests.cases import AttentionCase, attention_call, pages

INSTRUCTION_SETS = (
    ("scalar", "neon_dotprod", "neon_i8mm")
    if platform.machine() == "aarch64"
    else ("scalar", "avx2", "avx_vnni", "avx512", "avx512_vnni")
)
"""Every path of the CPU kernels, from the most portable to the fastest."""

FITTED = ("token_factors", "channel_factors", "factor_scales")
"""Fields that follow float sums, whose order kernels choose."""

TOLERANCE = {"float32": 1e-10, "float16": 1e-6, "bfloat16": 6e-6}
"""Largest NMSE by output type; rounding to FP16 alone costs 5e-8, to bfloat16 3e-6."""

GUARD_BYTES = 4096


class Guarded:
    """An array with a pattern before and after it, which writers must leave alone."""

    def __init__(self, like):
        self._raw = np.full(like.nbytes + 2 * GUARD_BYTES, 0xA5, np.uint8)
        self.array = self._raw[GUARD_BYTES:-GUARD_BYTES].view(like.dtype).reshape(like.shape)
        self.array[:] = like

    def check(self):
        assert (self._raw[:GUARD_BYTES] == 0xA5).all(), "written before its start"
        assert (self._raw[-GUARD_BYTES:] == 0xA5).all(), "written beyond its end"


def nmse(actual, expected):
    """Squared error relative to the energy of what is expected."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    energy = (expected**2).sum()
    return ((actual - expected) ** 2).sum() / (energy if energy else 1.0)


def assert_pages_equal(actual, expected, config: CompressionConfig, head_dim: int, context=""):
    """Every field bit for bit, but for those that follow the fitted factors."""
    fitted = set(FITTED) | ({"outlier_deltas"} if config.rank else set())
    for name, place in page_layout(config, head_dim).fields.items():
        side, field = name.split("_", 1)
        if not place.words or field in fitted:
            continue
        part = slice(place.offset, place.offset + place.words)
        np.testing.assert_array_equal(actual[part], expected[part], f"{context} {name}")
    if config.rank:
        for side in ("key", "value"):
            decoded = decode_side(actual, side, config, head_dim)
            assert nmse(decoded, decode_side(expected, side, config, head_dim)) < 1e-5, context


def check_compression(compress_pages, case):
    """All pages of a row of the case table.

    Args:
        compress_pages: Takes keys and values [P, C, D], the config, and `out` [P, page_words].
        case: The row.
    """
    made = pages(case)
    keys, values = (
        np.stack([getattr(page, name) for page in made]) for name in ("keys_CD", "values_CD")
    )
    out = Guarded(np.full((len(made), len(made[0].words)), -1, np.int32))
    compress_pages(keys, values, case.config, out=out.array)
    out.check()
    for words, page in zip(out.array, made, strict=True):
        assert_pages_equal(words, page.words, case.config, case.head_dim, page.kind)


def run_call(attention, case, call, state, **options):
    """Run an implementation with the signature of `gear_trt.native.attention` on `state`."""
    return attention(
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


def run_guarded(attention, case, call):
    """Run a call between sentinels; return its output and the state after it."""
    pool, buffer = Guarded(call.before.page_pool), Guarded(call.before.residual_buffer)
    out = Guarded(np.full(call.query_BSND.shape, np.nan, case.dtype))
    state = type(call.before)(pool.array, buffer.array)
    run_call(attention, case, call, state, out=out.array)
    for guarded in (pool, buffer, out):
        guarded.check()
    return out.array, state


def check_attention(attention, case, tolerance):
    """Output and state of a row of the case table; `tolerance` is the largest NMSE."""
    call = attention_call(case)
    output, state = run_guarded(attention, case, call)
    assert nmse(output, call.output_BSND) <= tolerance
    for row, count in zip(output, case.new, strict=True):
        assert not row[count:].any()
    assert_states_equal(state, call.after, case, call)


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


def check_that_ties_go_to_even(attention, group):
    """Means of two neighbouring bfloat16, each in the middle of the two."""
    head_dim = 64
    case = AttentionCase("ties", head_dim=head_dim, past=(0,), new=(2,), group=group)
    call = attention_call(dataclasses.replace(case, dtype="bfloat16"))
    lower = 1 + np.arange(head_dim) / 128
    call.value_BSHD[0, :, 0] = np.stack([lower, lower + 1 / 128])
    call.query_BSND[:] = 0  # both tokens weigh the same
    output = run_call(attention, case, call, call.before.copy())
    expected = (lower + 1 / 256).astype("bfloat16")
    np.testing.assert_array_equal(output[0, 1], np.broadcast_to(expected, (group, head_dim)))


TOKEN_STEPS = ((150,), (1,) * 150, (70, 1, 1, 64, 14), (3, 147))


def check_that_steps_do_not_matter(attention, preset, steps):
    """The same bytes whether 150 tokens come at once or in `steps`."""
    case = AttentionCase("prompt", past=(0,), new=(150,), kv_heads=2)
    case = AttentionCase(**{**case.__dict__, "config": case.config.preset(preset)})
    call = attention_call(case)
    whole = call.before.copy()
    run_call(attention, case, call, whole)
    state = call.before.copy()
    past = 0
    for count in steps:
        part = slice(past, past + count)
        step = {
            "query_BSND": call.query_BSND[:, part],
            "key_BSHD": call.key_BSHD[:, part],
            "value_BSHD": call.value_BSHD[:, part],
            "past_lengths": np.array([past], np.int32),
            "new_lengths": np.array([count], np.int32),
        }
        run_call(attention, case, type(call)(**{**call.__dict__, **step}), state)
        past += count
    assert state.page_pool.tobytes() == whole.page_pool.tobytes()
    assert state.residual_buffer.tobytes() == whole.residual_buffer.tobytes()
