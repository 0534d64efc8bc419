"""A one-layer decoder with a plain KV cache, as onnxruntime-genai writes it."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 4, 2, 16, 32


def save_decoder(path, **attention):
    """Write the model; `attention` are further attributes of its GroupQueryAttention node."""
    widths = {"query": HEADS * HEAD_DIM, "key": KV_HEADS * HEAD_DIM, "value": KV_HEADS * HEAD_DIM}
    weights = {"embedding": (VOCABULARY, 8), "head": (HEADS * HEAD_DIM, VOCABULARY)} | {
        f"{name}_weight": (8, width) for name, width in widths.items()
    }
    cache = ("B", KV_HEADS, "past", HEAD_DIM)
    inputs = {
        "input_ids": (TensorProto.INT64, ("B", "S")),
        "seqlens_k": (TensorProto.INT32, ("B",)),
        "total_sequence_length": (TensorProto.INT32, ()),
        "past_key_values.0.key": (TensorProto.FLOAT, cache),
        "past_key_values.0.value": (TensorProto.FLOAT, cache),
    }
    outputs = {
        "logits": (TensorProto.FLOAT, ("B", "S", VOCABULARY)),
        "present.0.key": (TensorProto.FLOAT, cache),
        "present.0.value": (TensorProto.FLOAT, cache),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["hidden"]),
        *(helper.make_node("MatMul", ["hidden", f"{name}_weight"], [name]) for name in widths),
        helper.make_node(
            "GroupQueryAttention",
            [*widths, *list(inputs)[3:], "seqlens_k", "total_sequence_length"],
            ["attended", *list(outputs)[1:]],
            name="attention",
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            **attention,
        ),
        helper.make_node("MatMul", ["attended", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
        [helper.make_tensor_value_info(name, *what) for name, what in outputs.items()],
        [
            numpy_helper.from_array(np.ones(shape, np.float32), name)
            for name, shape in weights.items()
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path
