"""The op inside ONNX Runtime gives what the reference gives."""

import numpy as np
import pytest
from onnx import helper

from gear_trt.bench.graphs import attributes, one_node_model
from gear_trt.reference import decompress_sequence
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import CompressionConfig, graph
from gear_trt.spec.config import PRESETS
from tests.cases import ATTENTION_CASES, attention_call
from tests.onnxruntime.op import H, Op, open_session
from tests.plugins.checks import TOLERANCE as NMSE_TOLERANCE
from tests.plugins.checks import assert_states_equal, nmse

TOLERANCE = {"float32": 2e-3, "float16": 4e-3}


def run_case(case, call, state, library=None):
    """Run a row of the case table on `state`, bound in place; return the output [B, S, N, D]."""
    layer = LayerFacts(
        num_heads=case.group * case.kv_heads,
        num_kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        config=case.config,
    )
    values = attributes(
        layer, scale=case.scale, softcap=case.softcap, sliding_window=case.sliding_window
    )
    session = open_session(one_node_model(layer, dtype=case.dtype, values=values), library=library)
    rows = call.query_BSND.shape[:2]
    output = np.full((*rows, layer.num_heads * layer.head_dim), np.nan, case.dtype)
    inputs = {
        "query": call.query_BSND.reshape(*rows, -1),
        "key": call.key_BSHD.reshape(*rows, -1),
        "value": call.value_BSHD.reshape(*rows, -1),
        graph.PAGE_TABLE: call.page_table,
        graph.SLOTS: call.slots,
        graph.PAST_LENGTHS: call.past_lengths,
        graph.NEW_LENGTHS: call.new_lengths,
        graph.page_pool_input(0): state.page_pool,
        graph.residual_buffer_input(0): state.residual_buffer,
    }
    outputs = {
        "output": output,
        graph.page_pool_output(0): state.page_pool,
        graph.residual_buffer_output(0): state.residual_buffer,
    }
    binding = session.io_binding()
    for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, array in arrays.items():
            dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
            bind(name, "cpu", 0, dtype, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)
    return output.reshape(call.query_BSND.shape)


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_every_row_of_the_case_table(case):
    call = attention_call(case)
    state = call.before.copy()
    output = run_case(case, call, state)
    assert nmse(output, call.output_BSND) <= NMSE_TOLERANCE[case.dtype]
    assert_states_equal(state, call.after, case, call)


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


def test_two_threads_give_what_one_gives():
    one, two = (Op(CompressionConfig.preset("k3v2"), batch=2, threads=n) for n in (1, 2))
    for new_lengths in ([90, 70], [1, 1], [50, 64]):
        np.testing.assert_array_equal(one.run(new_lengths)[0], two.run(new_lengths)[0])
    np.testing.assert_array_equal(one.state.page_pool, two.state.page_pool)
