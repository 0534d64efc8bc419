"""Proof by trial that a piece of a graph is causal attention over past and new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gear_trt.export.passes.forms.cache import Append
from gear_trt.export.passes.probe import (
    Array,
    Lengths,
    batch_size,
    evaluate,
    feed_graph_inputs,
)
from gear_trt.export.passes.sites import (
    AttentionFacts,
    MismatchError,
    SearchContext,
    float_type,
    present,
)

HIDDEN_SCORE = -5e3
"""Masks add -inf, the lowest finite number, or (old exporters) -1e4."""
LONGEST_TRIAL = 1 << 17
"""Tokens up to which a mask is looked at for a sliding window."""
SATURATING = 1e3
"""Factor on the queries that drives a soft-capped score to its cap."""
GENTLE = 1 / 16
"""Factor on the queries that keeps a soft cap from bending the scores much."""
TOLERANCE = {ir.DataType.FLOAT: 1e-4, ir.DataType.FLOAT16: 2e-2, ir.DataType.BFLOAT16: 1e-1}


@dataclass(frozen=True)
class Operands:
    """Where the piece begins: queries and the appended keys and values of the new tokens.

    Attributes:
        query: [B, N, S, D], or [B, S, N·D] where not `heads_first`.
        key: Appended to its past.
        value: Appended to its past.
        heads_first: Layout of the three.
    """

    query: ir.Value
    key: Append
    value: Append
    heads_first: bool

    @property
    def dtype(self) -> ir.DataType:
        """Type of the past, and so of the rest: inputs have a type, inner tensors may lack it."""
        return float_type(self.key.past)


class Trial:
    """Random queries, keys and values for one layer, and what the graph makes of them.

    Args:
        context: The graph.
        operands: Where the piece begins.
        heads: N, H and D.
    """

    def __init__(
        self, context: SearchContext, operands: Operands, heads: tuple[int, int, int]
    ) -> None:
        num_heads, num_kv_heads, head_dim = heads
        self._graph = context.graph
        self._operands = operands
        self.lengths = small_lengths(operands.key.past)
        new, past, batch = self.lengths.new, self.lengths.past, self.lengths.batch
        random = np.random.default_rng(0)
        self.query_BNSD = random.standard_normal((batch, num_heads, new, head_dim))
        kv_shape = (batch, num_kv_heads, past + new, head_dim)
        self.key_BHTD, self.value_BHTD = random.standard_normal((2, *kv_shape))

    def run(self, outputs: Sequence[ir.Value], *, query_factor: float = 1.0) -> list[Array]:
        """Compute values of the graph, in float64.

        Args:
            outputs: Which.
            query_factor: Multiplies the queries.

        Raises:
            MismatchError: They depend on more than operands and graph inputs.
        """
        feeds = feed_graph_inputs(self._graph, self.lengths)
        feeds[self._operands.query] = self._laid_out(self.query_BNSD * query_factor)
        for append, array_BHTD in (
            (self._operands.key, self.key_BHTD),
            (self._operands.value, self.value_BHTD),
        ):
            past_BHPD = array_BHTD[:, :, : self.lengths.past]
            feeds[append.past] = past_BHPD.astype(self._operands.dtype.numpy())
            new_BHSD = array_BHTD[:, :, self.lengths.past :]
            feeds[present(append.new)] = self._laid_out(new_BHSD)
        return [result.astype(np.float64) for result in evaluate(self._graph, feeds, outputs)]

    def check(self, output: ir.Value, facts: AttentionFacts) -> None:
        """Compare the graph's output with attention as `facts` describe it.

        Raises:
            MismatchError: They differ.
        """
        (actual,) = self.run([output])
        expected_BNSD = self._attend(facts)
        if not self._operands.heads_first:
            expected = expected_BNSD.swapaxes(1, 2).reshape(*actual.shape[:2], -1)
        else:
            expected = expected_BNSD
        if actual.shape != expected.shape:
            raise MismatchError(f"its output has shape {actual.shape}, not {expected.shape}")
        error = float(np.abs(actual - expected).max())
        if not error <= TOLERANCE[self._operands.dtype]:
            raise MismatchError(
                "it does not compute causal attention of the new tokens over past and new ones "
                f"(a trial run differs by {error:.2g})"
            )

    def products(self) -> Array:
        """Return q·k as [B, N, S, T] float64."""
        group = self.query_BNSD.shape[1] // self.key_BHTD.shape[1]
        product: Array = self.query_BNSD @ np.repeat(self.key_BHTD, group, 1).swapaxes(2, 3)
        return product

    def _attend(self, facts: AttentionFacts) -> Array:
        scores_BNST = self.products() * facts.scale
        if facts.softcap:
            scores_BNST = facts.softcap * np.tanh(scores_BNST / facts.softcap)
        visible_ST = visible(self.lengths, facts.sliding_window)
        weights_BNST = np.where(visible_ST, np.exp(scores_BNST), 0.0)
        weights_BNST /= weights_BNST.sum(-1, keepdims=True)
        group = self.query_BNSD.shape[1] // self.key_BHTD.shape[1]
        output_BNSD: Array = weights_BNST @ np.repeat(self.value_BHTD, group, 1)
        return output_BNSD

    def _laid_out(self, array_BNSD: Array) -> Array:
        if not self._operands.heads_first:
            batch, _, new, _ = array_BNSD.shape
            array_BNSD = array_BNSD.swapaxes(1, 2).reshape(batch, new, -1)
        return array_BNSD.astype(self._operands.dtype.numpy())


def guarded(output: ir.Value) -> ir.Value:
    """Walk on to the Where, if there is one, that clears the rows of queries that see nothing.

    No query of ours sees nothing: it sees at least itself.
    """
    readers = list(output.consumers())
    is_guarded = len(readers) == 1 and readers[0].op_type == "Where"
    return readers[0].outputs[0] if is_guarded else output


def repeated_heads(context: SearchContext, operand: ir.Value, append: Append) -> int:
    """Return N: how many heads keys or values have when the attention product reads them.

    Args:
        context: The graph.
        operand: What the product reads: [B, N, ·, ·].
        append: Where it comes from: [B, H, ·, D].

    Raises:
        MismatchError: It depends on more than past and new keys.
    """
    lengths = small_lengths(append.past)
    feeds = feed_graph_inputs(context.graph, lengths)
    past_BHPD = feeds[append.past]
    batch, num_kv_heads, _, head_dim = past_BHPD.shape
    new_shape = (batch, num_kv_heads, lengths.new, head_dim)
    feeds[present(append.new)] = np.zeros(new_shape, past_BHPD.dtype)
    (repeated,) = evaluate(context.graph, feeds, [operand])
    if repeated.ndim != len(past_BHPD.shape):
        raise MismatchError(f"the attention product reads tensors of rank {repeated.ndim}, not 4")
    return int(repeated.shape[1])


def visible(lengths: Lengths, sliding_window: int) -> Array:
    """Return which tokens each new token sees, causally: [S, T] bool."""
    query_S1 = np.arange(lengths.past, lengths.total)[:, None]
    key_T = np.arange(lengths.total)
    window = sliding_window or lengths.total
    seen_ST: Array = (key_T <= query_S1) & (key_T > query_S1 - window)
    return seen_ST


def small_lengths(past: ir.Value) -> Lengths:
    """Return sizes that tell every axis from every other."""
    return Lengths(batch_size(past, 2), new=3, past=5)


def longest_lengths(context: SearchContext, past: ir.Value) -> Lengths:
    """Return two new tokens after as many past ones as the model can have."""
    total = min(context.max_context, LONGEST_TRIAL)
    return Lengths(batch_size(past, 1), new=2, past=max(total - 2, 1))


def sliding_window_of(bias: Array, lengths: Lengths) -> int:
    """Return the sliding window of a mask, 0 where new tokens see all earlier ones.

    Args:
        bias: [..., S, T] bool (True: seen) or the float that is added to the scores.
        lengths: S and P.

    Raises:
        MismatchError: It is not a causal mask, or adds a bias to scores that are seen.
    """
    seen = bias if bias.dtype == bool else bias > HIDDEN_SCORE
    if bias.dtype != bool and (bias[seen] != 0).any():
        raise MismatchError("it adds a bias to the scores (ALiBi, relative positions)")
    seen_ST = seen.reshape(-1, *seen.shape[-2:])[0]
    if not (seen == seen_ST).all():
        raise MismatchError("its mask is not the same for all heads and sequences")
    last = int(seen_ST[-1].sum())
    window = last if last < lengths.total else 0
    if seen_ST.shape != (lengths.new, lengths.total) or not np.array_equal(
        seen_ST, visible(lengths, window)
    ):
        raise MismatchError("its mask is not causal")
    return window
