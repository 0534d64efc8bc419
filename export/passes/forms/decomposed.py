"""Attention written out as MatMul, mask, Softmax, MatMul, in whatever order of small steps.

Only the ends are found by walking; what lies between them is found out by running it, so that
exporters may place the scale, the mask and repeat_kv where they like.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gear_trt.export.passes.forms.cache import find_append
from gear_trt.export.passes.forms.trial import (
    GENTLE,
    SATURATING,
    Operands,
    Trial,
    guarded,
    longest_lengths,
    repeated_heads,
    sliding_window_of,
    visible,
)
from gear_trt.export.passes.probe import evaluate, feed_graph_inputs
from gear_trt.export.passes.sites import (
    AttentionFacts,
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
    "Add", "Cast", "Clip", "Div", "Identity", "Max", "Min", "Mul", "Sub", "Tanh", "Where"
}  # fmt: skip
_WEIGHT_OPS = _ROUNDING_OPS | {"Cast", "Dropout", "Identity", "Where"}


def match(node: ir.Node, context: SearchContext) -> KvSite | None:
    """Return the site that a `Softmax` node belongs to, None where it is no attention's.

    Raises:
        MismatchError: The layer cannot be routed.
    """
    product, weighted_sum = _score_product(node), _weighted_sum(node)
    if product is None or weighted_sum is None:
        return None
    operands = _operands(product, weighted_sum)
    heads = (
        repeated_heads(context, present(product.inputs[1]), operands.key),
        fixed_dim(operands.key.past, 1, "the number of KV heads"),
        fixed_dim(operands.key.past, 3, "head_dim"),
    )
    check_heads(*heads)
    window = _sliding_window(node, product, operands, heads[0], context)
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
    )


def _scores(softmax: ir.Node) -> ir.Value:
    return present(softmax.inputs[0])


def _score_product(softmax: ir.Node) -> ir.Node | None:
    """The MatMul of queries and keys, found backwards from the softmax."""
    waiting = [_scores(softmax)]
    while waiting:
        node = waiting.pop(0).producer()
        if node is None:
            continue
        if node.op_type == "MatMul":
            constant = any(value is None or value.const_value is not None for value in node.inputs)
            return None if constant else node
        if node.op_type in _SCORE_OPS:
            waiting.extend(value for value in node.inputs if value is not None)
    return None


def _weighted_sum(softmax: ir.Node) -> ir.Node | None:
    """The MatMul of attention weights and values, found forwards from the softmax."""
    waiting = [softmax.outputs[0]]
    while waiting:
        value = waiting.pop(0)
        for node in value.consumers():
            if node.op_type == "MatMul" and node.inputs[0] is value:
                return node
            if node.op_type in _WEIGHT_OPS:
                waiting.append(node.outputs[0])
    return None


def _operands(product: ir.Node, weighted_sum: ir.Node) -> Operands:
    query, all_keys = map(present, product.inputs)
    all_values = present(weighted_sum.inputs[1])
    query = _without_factor(query)
    if query.shape is not None and len(query.shape) != 4:
        raise MismatchError(f"query {query.name} is not [batch, heads, tokens, channels]")
    return Operands(
        query, find_append(all_keys, "key"), find_append(all_values, "value"), heads_first=True
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


def _sliding_window(
    softmax: ir.Node,
    product: ir.Node,
    operands: Operands,
    num_heads: int,
    context: SearchContext,
) -> int:
    """Run the mask alone: with scores of 0, the softmax reads what the mask adds."""
    lengths = longest_lengths(context, operands.key.past)
    feeds = feed_graph_inputs(context.graph, lengths)
    head_dim = fixed_dim(operands.key.past, 3, "head_dim")
    num_kv_heads = fixed_dim(operands.key.past, 1, "the number of KV heads")
    new_kv = (lengths.batch, num_kv_heads, lengths.new, head_dim)
    # Exporters read sizes off new tokens, and behind those lie all the layers before.
    for value, shape in (
        (product.outputs[0], (lengths.batch, num_heads, lengths.new, lengths.total)),
        (operands.query, (lengths.batch, num_heads, lengths.new, head_dim)),
        (present(operands.key.new), new_kv),
        (present(operands.value.new), new_kv),
    ):
        feeds[value] = np.zeros(shape, operands.dtype.numpy())
    (bias,) = evaluate(context.graph, feeds, [_scores(softmax)])
    return sliding_window_of(bias, lengths)


def _measure_scores(trial: Trial, scores: ir.Value, sliding_window: int) -> tuple[float, float]:
    """Return scale and softcap: what turns q·k into the scores that the softmax reads."""
    seen = np.broadcast_to(visible(trial.lengths, sliding_window), trial.products().shape)
    (saturated,) = trial.run([scores], query_factor=SATURATING)
    (gentle,) = trial.run([scores], query_factor=GENTLE)
    cap, largest = (float(np.abs(array[seen]).max()) for array in (saturated, gentle))
    is_linear = cap > 0.5 * largest * SATURATING / GENTLE
    linear = gentle[seen] if is_linear else cap * np.arctanh(gentle[seen] / cap)
    products = GENTLE * trial.products()[seen]
    scale = np.float32(linear @ products / (products @ products))
    return float(scale), 0.0 if is_linear else cap
