"""Names of an exported graph's inputs and outputs: the contract of exporter and runtime."""

from __future__ import annotations

INPUT_IDS = "input_ids"
"""[B, S] int64."""
PAGE_TABLE = "page_table"
SLOTS = "slots"
PAST_LENGTHS = "past_lengths"
NEW_LENGTHS = "new_lengths"
"""These four as in `GEAR_ATTENTION`; every layer shares them."""
LOGITS = "logits"
"""[B, S, vocab_size] float."""


def page_pool_input(layer: int) -> str:
    """Name of the page pool that the layer reads and updates."""
    return f"page_pool.{layer}"


def residual_buffer_input(layer: int) -> str:
    """Name of the residual buffer that the layer reads and updates."""
    return f"residual_buffer.{layer}"


def page_pool_output(layer: int) -> str:
    """Name of the updated pool, bound to the same memory as the input."""
    return f"page_pool_out.{layer}"


def residual_buffer_output(layer: int) -> str:
    """Name of the updated buffer, bound to the same memory as the input."""
    return f"residual_buffer_out.{layer}"
