"""Wrong graphs and wrong inputs are refused with messages that name the fault."""

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from gear_trt.bench.graphs import attributes, one_node_model
from gear_trt.spec import GEAR_ATTENTION, CompressionConfig, graph
from tests.onnxruntime.op import D, H, N, Op, layer, open_session

LAYER = layer(CompressionConfig.preset("k4v4"))
POOL, ROWS = graph.page_pool_input(0), graph.residual_buffer_input(0)


def open_with(**changes):
    values = {key: value for key, value in attributes(LAYER, 3).items() if key not in changes}
    values |= {key: value for key, value in changes.items() if value is not None}
    return open_session(one_node_model(LAYER, values=values))


def run_with(**changes):
    """Run three new tokens with single inputs replaced."""
    op = Op(LAYER.config)
    feeds = op.feeds(op.new_tokens(3), np.array([3], np.int32))
    return op.session.run(None, {**feeds, **changes})


def test_layout_of_another_version_is_refused_with_a_remedy():
    with pytest.raises(Exception, match=r"page layout 0123, .*export the model again"):
        open_with(layout_hash="0123")


@pytest.mark.parametrize("name", ["num_heads", "scale", "chunk", "layout_hash"])
def test_missing_attribute_is_named(name):
    with pytest.raises(Exception, match=f"attribute {name} is missing"):
        open_with(**{name: None})


@pytest.mark.parametrize(
    ("name", "value"),
    [("key_bits", 5), ("num_kv_heads", 3), ("head_dim", 24), ("chunk", 65), ("rank", 99)],
)
def test_attribute_out_of_range_is_named(name, value):
    with pytest.raises(Exception, match=rf"layer 3: .*{name}"):
        open_with(**{name: value})


def test_attribute_that_is_no_32_bit_number_is_refused():
    with pytest.raises(Exception, match="attribute rank is 4294967296"):
        open_with(rank=2**32)


def test_buffer_type_must_fit_the_bits():
    with pytest.raises(Exception, match="key_bits 4 needs a float16 residual_buffer"):
        open_session(one_node_model(LAYER, buffer_type="float32"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {POOL: np.zeros((8, H, 1000), np.int32)},
            rf"page_pool has shape \[8, 2, 1000\], expected \[num_pages, {H}, \d+\]",
        ),
        (
            {ROWS: np.zeros((1, H, 2, 64, D), np.float16)},
            rf"residual_buffer has shape \[1, 2, 2, 64, 32\], expected \[slots, {H}, 2, 68, {D}\]",
        ),
        (
            {"query": np.zeros((1, 3, 100), np.float32)},
            rf"query has shape \[1, 3, 100\], expected \[B, S, {N * D}\]",
        ),
        (
            {"key": np.zeros((1, 4, H * D), np.float32)},
            rf"key has shape \[1, 4, {H * D}\], expected \[1, 3, {H * D}\]",
        ),
        (
            {graph.SLOTS: np.zeros(2, np.int32)},
            r"slots has shape \[2\], expected \[1\]",
        ),
    ],
)
def test_wrong_shape_is_named_with_the_expected_one(changes, message):
    with pytest.raises(Fail, match="layer 0: " + message):
        run_with(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {graph.PAGE_TABLE: np.full((1, 3), 99, np.int32), graph.PAST_LENGTHS: np.array([68], "i4")},
        {graph.SLOTS: np.array([7], np.int32)},
        {graph.PAST_LENGTHS: np.array([-1], np.int32)},
        {graph.NEW_LENGTHS: np.array([4], np.int32)},
        {graph.PAST_LENGTHS: np.array([1000], np.int32)},
    ],
)
def test_values_that_would_leave_the_state_are_refused(changes):
    with pytest.raises(Fail, match=f"{GEAR_ATTENTION.name}: .* of sequence 0"):
        run_with(**changes)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_key_is_refused_and_the_state_stays(value):
    op = Op(LAYER.config)
    tokens = op.new_tokens(3)
    tokens["key"][0, 1, D + 5] = value
    binding = op.bind(tokens, np.array([3], np.int32))
    with pytest.raises(RuntimeError, match=r"layer 0.*finite"):
        op.session.run_with_iobinding(binding)
    assert not op.state.residual_buffer.any()
