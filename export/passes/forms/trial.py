"""Proof by trial that a piece of a graph is causal attention over past and new tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gear_trt.export.passes.forms.cache import Append, check_order
from gear_trt.export.passes.probe import (
    Array,
    Lengths,
    batch_size,
    evaluate,
    feed_graph_inputs,
)
from gear_trt.export.passes.sites import (
    AttentionFacts,
    HeadTensor,
    MismatchError,
    SearchContext,
    fixed_dim,
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
        query: Of the new tokens; the output has the same layout.
        key: Appended to its past.
        value: Appended to its past.
    """

    query: HeadTensor
    key: Append
    value: Append

    @property
    def heads_first(self) -> bool:
        """Whether the output is [B, N, S, D], not [B, S, N·D]."""
        return self.query.perm is not None

    def zeros(self, heads: tuple[int, int, int], lengths: Lengths) -> dict[ir.Value, Array]:
        """Return what feeds the new tokens where only their shapes matter.

        Exporters read sizes off new tokens, and behind those lie all the layers before.

        Args:
            heads: N, H and D.
            lengths: B and S.
        """
        num_heads, num_kv_heads, head_dim = heads
        tensors = ((self.query, num_heads), (self.key.new, num_kv_heads))
        return {
            tensor.tensor: tensor.laid_out(
                np.zeros((lengths.batch, count, lengths.new, head_dim), self.dtype.numpy())
            )
            for tensor, count in (*tensors, (self.value.new, num_kv_heads))
            if tensor is not None
        }

    @property
    def caches(self) -> tuple[ir.Value, ir.Value]:
        """Past keys and values."""
        return self.key.past, self.value.past

    @property
    def dtype(self) -> ir.DataType:
        """Type of the past, and so of the rest: inputs have a type, inner tensors may lack it."""
        return float_type(self.key.past)


ShownByOp = Callable[[Lengths], Array]
"""Which tokens [S, T] (bool) an op shows to each new token, without a mask."""


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
        _check_value_dim(operands.value.past, head_dim)
        check_order(context.graph, operands.key, operands.value)
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
        query, dtype = self._operands.query, self._operands.dtype.numpy()
        feeds[query.tensor] = query.laid_out(self.query_BNSD * query_factor).astype(dtype)
        for append, array_BHTD in (
            (self._operands.key, self.key_BHTD),
            (self._operands.value, self.value_BHTD),
        ):
            feeds[append.past] = self._past(append, array_BHTD)
            new_BHSD = array_BHTD[:, :, self.lengths.past :]
            new = present(append.new)
            feeds[new.tensor] = new.laid_out(new_BHSD).astype(dtype)
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

    def _past(self, append: Append, array_BHTD: Array) -> Array:
        """Past tokens, and noise in the rows of a cache of full length that hold none yet."""
        past_BHPD = array_BHTD[:, :, : self.lengths.past]
        if append.is_fixed:
            batch, heads, past, head_dim = past_BHPD.shape
            rows = capacity_of(append, self.lengths) - past
            noise = np.random.default_rng(1).standard_normal((batch, heads, rows, head_dim))
            past_BHPD = np.concatenate((past_BHPD, noise), axis=2)
        return past_BHPD.astype(self._operands.dtype.numpy())


def _check_value_dim(past_value: ir.Value, head_dim: int) -> None:
    channels = fixed_dim(past_value, 3, "head_dim of the values")
    if channels != head_dim:
        raise MismatchError(f"its keys have {head_dim} channels and its values {channels}")


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
    new_BHSD = np.zeros((batch, num_kv_heads, lengths.new, head_dim), past_BHPD.dtype)
    new = present(append.new)
    feeds[new.tensor] = new.laid_out(new_BHSD)
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


def causal(lengths: Lengths) -> Array:
    """Return what a causal op shows: [S, T] bool."""
    return visible(lengths, 0)


def all_visible(lengths: Lengths) -> Array:
    """Return what an op shows that hides nothing: [S, T] bool."""
    return np.ones((lengths.new, lengths.total), bool)


def small_lengths(past: ir.Value) -> Lengths:
    """Return sizes that tell every axis from every other."""
    return Lengths(batch_size(past, 2), new=3, past=5)


def longest_lengths(context: SearchContext, append: Append) -> Lengths:
    """Return two new tokens after as many past ones as the model can have."""
    total = min(context.max_context, append.capacity or LONGEST_TRIAL, LONGEST_TRIAL)
    return Lengths(batch_size(append.past, 1), new=2, past=max(total - 2, 1))


def capacity_of(append: Append, lengths: Lengths) -> int:
    """Return how many tokens a cache of full length holds in a trial run."""
    return append.capacity or lengths.total


def masked_window(
    context: SearchContext,
    operands: Operands,
    heads: tuple[int, int, int],
    mask: ir.Value | None,
    shown_ST: ShownByOp,
) -> int:
    """Return the sliding window that an attention op and its mask have together.

    Args:
        context: The graph.
        operands: Of the layer.
        heads: N, H and D.
        mask: Bool (True: seen) or float (added to the scores) [..., S, T]; None for none.
        shown_ST: What the op shows without a mask.

    Raises:
        MismatchError: Together they are not causal.
    """
    lengths = longest_lengths(context, operands.key)
    seen_ST = shown_ST(lengths)
    if mask is None:
        return sliding_window_of(seen_ST, lengths)
    feeds = feed_graph_inputs(context.graph, lengths) | operands.zeros(heads, lengths)
    (bias,) = evaluate(context.graph, feeds, [mask])
    if bias.dtype == bool:
        bias = np.where(bias, 0.0, -np.inf)
    free_rows = bias.shape[-1] - lengths.total
    if free_rows < 0:
        raise MismatchError(f"its mask has shape {bias.shape}, too short for {lengths.total} keys")
    seen_ST = np.pad(seen_ST, ((0, 0), (0, free_rows)), constant_values=True)
    return sliding_window_of(np.where(seen_ST, bias, -np.inf), lengths)


def sliding_window_of(bias: Array, lengths: Lengths) -> int:
    """Return the sliding window of a mask, 0 where new tokens see all earlier ones.

    Args:
        bias: [..., S, T] bool (True: seen) or the float that is added to the scores; the last
            axis is longer where the cache has room for more.
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
    if seen_ST[:, lengths.total :].any():
        raise MismatchError("its mask shows rows of the cache that hold no token yet")
    seen_ST = seen_ST[:, : lengths.total]
    last = int(seen_ST[-1].sum())
    window = last if last < lengths.total else 0
    if seen_ST.shape != (lengths.new, lengths.total) or not np.array_equal(
        seen_ST, visible(lengths, window)
    ):
        raise MismatchError("its mask is not causal")
    return window
