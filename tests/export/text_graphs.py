"""One-layer decoders as ONNX text, small enough to show every step of their attention."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

HEADS, KV_HEADS, HEAD_DIM, WIDTH, CONTEXT = 4, 2, 16, 64, 64

CAUSAL = """
  tokens = Shape<start=1, end=2>(input_ids)
  total = Shape<start=1, end=2>(attention_mask)
  past_tokens = Sub(total, tokens)
  first = Squeeze(past_tokens)
  last = Squeeze(total)
  key_T = Range(zero, last, one)
  query_S = Range(first, last, one)
  query_S1 = Unsqueeze(query_S, last_axis)
  seen_ST = LessOrEqual(key_T, query_S1)
"""
WINDOW_OF_5 = (
    CAUSAL.replace(
        "seen_ST = LessOrEqual",
        """oldest_S1 = Sub(query_S1, five)
  newer_ST = Greater(key_T, oldest_S1)
  causal_ST = LessOrEqual""",
    )
    + "seen_ST = And(newer_ST, causal_ST)\n"
)
MASKED = """
  bias_ST = Where(seen_ST, nothing, hidden)
  scores = Add(scaled, bias_ST)
"""
HEADER = """
<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
decoder (int64[batch, tokens] input_ids, int64[batch, total] attention_mask,
         float[batch, 2, past, 16] old_keys, float[batch, 2, past, 16] old_values)
  => (float[batch, tokens, 64] logits, float[batch, 2, total, 16] new_keys,
      float[batch, 2, total, 16] new_values)
{
  hidden_states = Gather(embedding, input_ids)
  flat_query = MatMul(hidden_states, query_weight)
  flat_key = MatMul(hidden_states, key_weight)
  flat_value = MatMul(hidden_states, value_weight)
"""
FOOTER = """
  logits = MatMul(mixed, output_weight)
}
"""
HEADS_FIRST = """
  query_BSND = Reshape(flat_query, split_query)
  query = Transpose<perm=[0, 2, 1, 3]>(query_BSND)
  key_BSHD = Reshape(flat_key, split_key)
  key = Transpose<perm=[0, 2, 1, 3]>(key_BSHD)
  value_BSHD = Reshape(flat_value, split_key)
  value = Transpose<perm=[0, 2, 1, 3]>(value_BSHD)
"""
GROWING = """
  new_keys = Concat<axis=2>(old_keys, key)
  new_values = Concat<axis=2>(old_values, value)
"""
REPEATED = """
  grouped_keys = Unsqueeze(new_keys, group_axis)
  twice_keys = Expand(grouped_keys, twice)
  all_keys = Reshape(twice_keys, merge_groups)
  grouped_values = Unsqueeze(new_values, group_axis)
  twice_values = Expand(grouped_values, twice)
  all_values = Reshape(twice_values, merge_groups)
"""
PRODUCTS = """
  turned_keys = Transpose<perm=[0, 1, 3, 2]>(all_keys)
  products = MatMul(query, turned_keys)
  scaled = Mul(products, scale)
"""
SOFTMAX = """
  weights = Softmax<axis=-1>(scores)
  heads = MatMul(weights, all_values)
"""
HEADS_LAST = """
  heads_last = Transpose<perm=[0, 2, 1, 3]>(heads)
  mixed = Reshape(heads_last, merge_heads)
"""
SOFTCAPPED = """
  lowered = Div(products, cap)
  squashed = Tanh(lowered)
  scaled = Mul(squashed, cap)
"""
GUARDED = """
  plain = MatMul(weights, all_values)
  ones_ST = Cast<to=7>(seen_ST)
  count_S1 = ReduceSum<keepdims=1>(ones_ST, last_axis)
  sees_nothing_S1 = Less(count_S1, one)
  heads = Where(sees_nothing_S1, nothing, plain)
"""
WRITTEN_OUT = (
    HEADER, HEADS_FIRST, GROWING, REPEATED, PRODUCTS, CAUSAL, MASKED, SOFTMAX, HEADS_LAST, FOOTER
)  # fmt: skip


def written_out(*replacements):
    """Return decomposed attention with parts of its text replaced."""
    text = "".join(WRITTEN_OUT)
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return with_weights(text)


def with_node(nodes, *, kv_heads=KV_HEADS):
    """Return a decoder whose attention is the given nodes, from flat_query to mixed."""
    head_dim = KV_HEADS * HEAD_DIM // kv_heads
    header = HEADER.replace("2, past, 16", f"{kv_heads}, past, {head_dim}")
    header = header.replace("2, total, 16", f"{kv_heads}, total, {head_dim}")
    return with_weights(header + nodes + FOOTER)


def with_weights(text, **changes):
    """Return the model of a text with the weights it reads, some of them changed."""
    model = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    for name, array in (_weights() | changes).items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _weights():
    random = np.random.default_rng(0)

    def matrix(rows, columns, spread=1.0):
        return (spread * random.standard_normal((rows, columns)) / rows**0.5).astype(np.float32)

    angles = np.outer(np.arange(CONTEXT), 100.0 ** (-np.arange(8) / 8)).astype(np.float32)
    integers = {
        "split_query": [0, 0, HEADS, HEAD_DIM],
        "split_key": [0, 0, KV_HEADS, HEAD_DIM],
        "merge_heads": [0, 0, WIDTH],
        "merge_groups": [0, HEADS, -1, HEAD_DIM],
        "twice": [1, 1, 2, 1, 1],
        "group_axis": [2],
        "head_sizes": [HEADS, HEAD_DIM],
        "last_axis": [-1],
        "front_axes": [0, 1],
        "zero": 0,
        "one": 1,
        "five": 5,
    }
    floats = {"scale": 0.3, "cap": 2.0, "nothing": 0.0, "hidden": -np.inf}
    return {
        "embedding": matrix(WIDTH, WIDTH, 8.0),
        "query_weight": matrix(WIDTH, HEADS * HEAD_DIM, 2.0),
        "key_weight": matrix(WIDTH, KV_HEADS * HEAD_DIM, 2.0),
        "value_weight": matrix(WIDTH, KV_HEADS * HEAD_DIM),
        "output_weight": matrix(WIDTH, WIDTH),
        "cos_table": np.cos(angles),
        "sin_table": np.sin(angles),
        "slopes": np.linspace(0.1, 0.4, HEADS, dtype=np.float32).reshape(1, HEADS, 1, 1),
        "next_places": np.arange(1, CONTEXT + 1).clip(max=CONTEXT - 1),
        "head_order": np.array([0, 2, 1, 3]),
        **{name: np.array(value, np.int64) for name, value in integers.items()},
        **{name: np.array(value, np.float32) for name, value in floats.items()},
    }


def retyped(model, source, target):
    """Return a model with another float type in the place of one."""
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    array_type = helper.tensor_dtype_to_np_dtype(target)
    for tensor in converted.graph.initializer:
        if tensor.data_type == source:
            array = numpy_helper.to_array(tensor).astype(array_type)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in converted.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == source:
                attribute.i = target
    graph = converted.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == source:
            value.type.tensor_type.elem_type = target
    return converted


def run_original(model, token_ids):
    """Return the logits of the model as ONNX Runtime computes them, with an empty past."""
    batch, tokens = token_ids.shape
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    _, kv_heads, rows, head_dim = session.get_inputs()[-1].shape
    empty = np.zeros((batch, kv_heads, rows if isinstance(rows, int) else 0, head_dim), np.float32)
    feeds = {
        "input_ids": token_ids,
        "attention_mask": np.ones((batch, tokens), np.int64),
        "old_keys": empty,
        "old_values": empty,
        "written_tokens": np.zeros(batch, np.int64),
        "lengths": np.full(batch, tokens - 1, np.int32),
        "kept_tokens": np.full(batch, tokens),
    }
    names = {value.name for value in session.get_inputs()}
    return session.run(["logits"], {name: feeds[name] for name in names})[0]
