"""The op inside ONNX Runtime gives what the reference gives."""

import numpy as np
import pytest

from gear_trt.reference import decompress_sequence
from gear_trt.spec import CompressionConfig
from gear_trt.spec.config import PRESETS
from tests.onnxruntime.op import H, Op

TOLERANCE = {"float32": 2e-3, "float16": 4e-3}


def check_steps(op, steps):
    for new_lengths in steps:
        got, want = op.run(new_lengths)
        np.testing.assert_allclose(got, want, atol=TOLERANCE[op.dtype])
    np.testing.assert_array_equal(op.state.residual_buffer, op.reference.residual_buffer)
    for sequence, length in enumerate(op.lengths):
        where = op.page_table[sequence], op.slots[sequence], length
        for head in range(H):
            got = decompress_sequence(op.state, *where, head)
            want = decompress_sequence(op.reference, *where, head)
            np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("preset", PRESETS)
def test_prefill_then_chunked_prefill_then_decode(preset, dtype):
    op = Op(CompressionConfig.preset(preset), dtype=dtype)
    check_steps(op, [[70], [63], *[[1]] * 6])
    assert op.state.page_pool.any(), "the steps must fill pages"


@pytest.mark.parametrize("preset", ["exact", "k4v4", "paper-2bit"])
def test_sequences_of_unequal_lengths(preset):
    op = Op(CompressionConfig.preset(preset), batch=3)
    check_steps(op, [[5, 80, 0], [66, 0, 1], [1, 1, 1], [1, 1, 0]])


def test_rows_beyond_the_new_lengths_are_zero():
    op = Op(CompressionConfig.preset("k4v4"), batch=2)
    got, _ = op.run([7, 3])
    assert not got[1, 3:].any()


def test_chunks_of_128_tokens():
    check_steps(Op(CompressionConfig.preset("k4v4", chunk=128)), [[130], [1], [3]])


def test_two_threads_give_what_one_gives():
    one, two = (Op(CompressionConfig.preset("k3v2"), batch=2, threads=n) for n in (1, 2))
    for new_lengths in ([90, 70], [1, 1], [50, 64]):
        np.testing.assert_array_equal(one.run(new_lengths)[0], two.run(new_lengths)[0])
    np.testing.assert_array_equal(one.state.page_pool, two.state.page_pool)
