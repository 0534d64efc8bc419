"""State is updated where it lies; callers that do not bind it still get right results."""

import os

import numpy as np
import psutil

from gear_trt.spec import CompressionConfig, graph
from tests.onnxruntime.op import Op

STATE = {
    graph.page_pool_output(0): "page_pool",
    graph.residual_buffer_output(0): "residual_buffer",
}


def test_bound_outputs_are_the_inputs_memory():
    op = Op(CompressionConfig.preset("k4v4"))
    new_lengths = np.array([70], np.int32)
    binding = op.bind(op.new_tokens(70), new_lengths)
    addresses = {name: getattr(op.state, field).ctypes.data for name, field in STATE.items()}
    for _ in range(100):
        op.session.run_with_iobinding(binding)
        pool, rows, _ = binding.get_outputs()
        assert {
            graph.page_pool_output(0): pool.data_ptr(),
            graph.residual_buffer_output(0): rows.data_ptr(),
        } == addresses
    assert op.state.page_pool.any(), "the update must land in the caller's own array"


def test_resident_memory_stays_flat():
    op = Op(CompressionConfig.preset("k4v4"), pages=64)
    op.state.page_pool[...] = 0  # take the memory now, so that growth later is a leak
    op.run([512])
    binding = op.bind(op.new_tokens(1), np.array([1], np.int32))
    process = psutil.Process(os.getpid())
    before = process.memory_info().rss
    for _ in range(3000):
        op.session.run_with_iobinding(binding)
        op.lengths += 1
    assert process.memory_info().rss - before < 4e6


def test_unbound_state_is_copied_and_the_inputs_stay():
    op = Op(CompressionConfig.preset("k4v2"))
    for seq_len in (70, 1, 64):
        new_lengths = np.array([seq_len], np.int32)
        tokens = op.new_tokens(seq_len)
        before = {field: getattr(op.state, field).copy() for field in STATE.values()}
        got, pool, rows = op.session.run(["output", *STATE], op.feeds(tokens, new_lengths))
        for field, array in before.items():
            np.testing.assert_array_equal(getattr(op.state, field), array)
        np.testing.assert_allclose(got, op.run_reference(tokens, new_lengths), atol=2e-3)
        op.state.page_pool, op.state.residual_buffer = pool, rows
        op.lengths += new_lengths
    np.testing.assert_array_equal(pool, op.reference.page_pool)
    np.testing.assert_array_equal(rows, op.reference.residual_buffer)
