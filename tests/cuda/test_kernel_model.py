"""docs/kernels.md: its tables are those of the spec, the headers and ptxas; the model adds up."""

import pytest

from benchmarks import kernel_model
from benchmarks.gpu_shapes import CONFIGS, SHAPES, decode_bytes


def test_the_page_is_up_to_date():
    text = kernel_model.PAGE.read_text()
    assert kernel_model.updated(text) == text, "run `python -m benchmarks.kernel_model`"


def test_a_table_without_a_place_is_an_error():
    with pytest.raises(ValueError, match="0 places for the table 'bytes'"):
        kernel_model.updated("no markers")


def test_old_numbers_are_replaced():
    text = kernel_model.PAGE.read_text()
    assert kernel_model.updated(text.replace("| 145 |", "| 144 |")) == text


def test_the_page_says_that_nothing_was_measured():
    assert "No time on this page was measured" in kernel_model.PAGE.read_text()


@pytest.mark.parametrize("gpu", kernel_model.GPUS, ids=lambda gpu: gpu.name)
def test_predictions_are_a_fixed_cost_and_bytes_over_bandwidth(gpu):
    size = decode_bytes(SHAPES[0], CONFIGS["k4v4"])
    twice = kernel_model.our_us(gpu, 2 * size, 0.5) - kernel_model.our_us(gpu, size, 0.5)
    assert twice == pytest.approx(1e6 * size / (0.45 * gpu.bandwidth))


def test_smaller_blocks_take_less_shared_memory():
    (sizes,) = kernel_model.shared_sizes([(CONFIGS["k4v4"], 128)])
    assert [size.warps for size in sizes] == [4, 2, 1]
    assert sizes[0].block > sizes[1].block > sizes[2].block > 9280  # a page at least
