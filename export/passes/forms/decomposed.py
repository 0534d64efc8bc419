"""Attention written out as MatMul, mask, Softmax, MatMul, in whatever order of small steps.

Only the ends are found by walking; what lies between them is found out by running it, so that
exporters may place the scale, the mask and repeat_kv where they like.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from gear_trt.export.passes.forms.cache import find_append
from gear_trt.export.passes.forms.trial import (
    GENTLE,
    SATURATING,
    Operands,
    Trial,
    capacity_of,
    guarded,
    longest_lengths,
    repeated_heads,
    sliding_window_of,
    visible,
)
from gear_trt.export.passes.nodes import HEADS_FIRST
from gear_trt.export.passes.probe import evaluate, feed_graph_inputs
from gear_trt.export.passes.sites import (
    AttentionFacts,
    HeadTensor,
    KvSite,
    MismatchError,
    SearchContext,
    check_heads,
    fixed_dim,
    present,
)

FORM = "MatMul + Softmax"

_ROUNDING_OPS = frozenset({"DequantizeLinear", "QuantizeLinear"})
"""Passed on the way, so that attention which is quantized itself is a near miss."""
_SCORE_OPS = _ROUNDING_OPS | {
    "Add", "Cast", "Clip", "Div", "Identity", "Max", "Min", "Mul", "Reshape", "Sub", "Tanh", "Where"
}  # fmt: skip
_PRODUCTS = frozenset({"Einsum", "FusedMatMul", "Gemm", "MatMul", "MatMulNBits"})
_WEIGHT_OPS = _ROUNDING_OPS | {"Cast", "Dropout", "Identity", "Reshape", "Slice", "Where"}
_WEIGHT_CARRIERS = frozenset({"Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"})


def match(node: ir.Node, context: SearchContext) -> KvSite | None:
    """Return the site that a `Softmax` node belongs to, None where it is no attention's.

    Raises:
        MismatchError: The layer cannot be routed.
    """
    product, weighted_sum = _score_product(node), _weighted_sum(node)
    if product is None or weighted_sum is None:
        return None
    _check_steps(node, product)
    operands = _operands(product, weighted_sum)
    heads = (
        _num_heads(context, product, operands),
        fixed_dim(operands.key.past, 1, "the number of KV heads"),
        fixed_dim(operands.key.past, 3, "head_dim"),
    )
    check_heads(*heads)
    window = _sliding_window(node, product, operands, heads, context)
    trial = Trial(context, operands, heads)
    scale, softcap = _measure_scores(trial, _scores(node), window)
    facts = AttentionFacts(*heads, scale, softcap, window)
    output = guarded(weighted_sum.outputs[0])
    trial.check(output, facts)
    return KvSite(
        form=FORM,
        node=weighted_sum,
        facts=facts,
        query=operands.query,
        key=operands.key.new,
        value=operands.value.new,
        output=output,
        heads_first=True,
        dtype=operands.dtype,
        caches=operands.caches,
        capacity=operands.key.capacity,
    )


def _scores(softmax: ir.Node) -> ir.Value:
    return present(softmax.inputs[0])


def _score_product(softmax: ir.Node) -> ir.Node | None:
    """The MatMul of queries and keys, found backwards from the softmax."""
    nodes = (node for node in _backwards(_scores(softmax)) if node.op_type in _PRODUCTS)
    product = next(nodes, None)
    if product is None or any(value is None or _is_weight(value) for value in product.inputs[:2]):
        return None
    return product


def _backwards(value: ir.Value) -> Iterator[ir.Node]:
    """Nodes that a value comes from, nearest first, up to products of matrices."""
    waiting, seen = deque([value]), set()
    while waiting:
        node = waiting.popleft().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if node.op_type not in _PRODUCTS:
            waiting.extend(item for item in node.inputs if item is not None)


def _is_weight(value: ir.Value) -> bool:
    """Whether a value is a weight, also one that is stored in another type or order."""
    node = value.producer()
    while value.const_value is None and node is not None and node.op_type in _WEIGHT_CARRIERS:
        value = present(node.inputs[0])
        node = value.producer()
    return value.const_value is not None


def _check_steps(softmax: ir.Node, product: ir.Node) -> None:
    """Refuse attention that does more to its scores than scale, cap and mask them."""
    from_product = {product}
    for node in reversed(list(_backwards(_scores(softmax)))):
        if not any(value and value.producer() in from_product for value in node.inputs):
            continue
        from_product.add(node)
        if node.op_type == "Concat":
            raise MismatchError(f"node {node.name} joins others to its scores (attention sinks)")
        if node.op_type not in _SCORE_OPS:
            raise MismatchError(f"{node.op_type} node {node.name} changes its scores")


def _weighted_sum(softmax: ir.Node) -> ir.Node | None:
    """The MatMul of attention weights and values, found forwards from the softmax."""
    waiting = [softmax.outputs[0]]
    while waiting:
        value = waiting.pop(0)
        for node in value.consumers():
            if node.op_type in _PRODUCTS and node.inputs[0] is value:
                return node
            if node.op_type in _WEIGHT_OPS:
                waiting.append(node.outputs[0])
    return None


def _operands(product: ir.Node, weighted_sum: ir.Node) -> Operands:
    query, all_keys = map(present, product.inputs[:2])
    all_values = present(weighted_sum.inputs[1])
    query = _by_heads(_without_factor(query))
    return Operands(
        HeadTensor(query, HEADS_FIRST),
        find_append(all_keys, "key"),
        find_append(all_values, "value"),
    )


def _without_factor(value: ir.Value) -> ir.Value:
    """Walk back over a scale that is applied to the query alone; it is measured with the rest."""
    node = value.producer()
    if node is None or node.op_type not in ("Mul", "Div"):
        return value
    factors = [item for item in node.inputs if item is not None and item.const_value is not None]
    others = [item for item in node.inputs if item is not None and item.const_value is None]
    if len(others) == 1 and all(item.const_value.size == 1 for item in factors if item.const_value):
        return others[0]
    return value


def _by_heads(query: ir.Value) -> ir.Value:
    """Walk back over the Reshape of [B, N, S, D] to [B·N, S, D] that products of rank 3 need."""
    node = query.producer()
    if _rank(query) == 3 and node is not None and node.op_type == "Reshape":
        query = present(node.inputs[0])
    if _rank(query) not in (4, None):
        raise MismatchError(f"query {query.name} is not [batch, heads, tokens, channels]")
    return query


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _num_heads(context: SearchContext, product: ir.Node, operands: Operands) -> int:
    """N: by the shape of the query where the graph says it, else by the repeated keys."""
    shape = operands.query.tensor.shape
    if shape is not None and len(shape) == 4 and isinstance(shape[1], int):
        return shape[1]
    return repeated_heads(context, present(product.inputs[1]), operands.key)


def _sliding_window(
    softmax: ir.Node,
    product: ir.Node,
    operands: Operands,
    heads: tuple[int, int, int],
    context: SearchContext,
) -> int:
    """Run the mask alone: with scores of 0, the softmax reads what the mask adds."""
    lengths = longest_lengths(context, operands.key)
    feeds = feed_graph_inputs(context.graph, lengths)
    keys = capacity_of(operands.key, lengths)
    is_flat = _rank(product.outputs[0]) == 3
    axes = (lengths.batch * heads[0],) if is_flat else (lengths.batch, heads[0])
    feeds |= operands.zeros(heads, lengths)
    feeds[product.outputs[0]] = np.zeros((*axes, lengths.new, keys), operands.dtype.numpy())
    (bias,) = evaluate(context.graph, feeds, [_scores(softmax)])
    return sliding_window_of(bias, lengths)


def _measure_scores(trial: Trial, scores: ir.Value, sliding_window: int) -> tuple[float, float]:
    """Return scale and softcap: what turns q·k into the scores that the softmax reads."""
    total = trial.lengths.total
    seen = np.broadcast_to(visible(trial.lengths, sliding_window), trial.products().shape)
    (saturated,) = trial.run([scores], query_factor=SATURATING)
    (gentle,) = trial.run([scores], query_factor=GENTLE)
    saturated, gentle = (array[..., :total].reshape(seen.shape) for array in (saturated, gentle))
    cap, largest = (float(np.abs(array[seen]).max()) for array in (saturated, gentle))
    is_linear = cap > 0.5 * largest * SATURATING / GENTLE
    linear = gentle[seen] if is_linear else cap * np.arctanh(gentle[seen] / cap)
    products = GENTLE * trial.products()[seen]
    scale = np.float32(linear @ products / (products @ products))
    return float(scale), 0.0 if is_linear else cap
