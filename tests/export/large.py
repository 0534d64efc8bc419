"""A model of the shape of Llama-3-8B, FP16, whose weights are a hole in a file."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 32, 32, 8, 128
HIDDEN, INNER, VOCABULARY, CONTEXT = 4096, 14336, 128256, 8192
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
DATA_FILE = "model.onnx.data"
ALIGNMENT = 4096


def save_llama_8b(folder):
    """Write `model.onnx` and its data file; return the bytes of the weights."""
    weights, size = _weights()
    nodes = [helper.make_node("Gather", ["embedding", "input_ids"], ["hidden.0"])]
    for layer in range(LAYERS):
        nodes += _layer(layer)
    nodes += [_norm(f"hidden.{LAYERS}", "final_norm", "final"), _product("final", "head", "logits")]
    half, ids = TensorProto.FLOAT16, TensorProto.INT64
    cache = ("B", KV_HEADS, "past", HEAD_DIM)
    names = [f"{layer}.{side}" for layer in range(LAYERS) for side in ("key", "value")]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "llama",
        [
            info("input_ids", ids, ("B", "S")),
            info("lengths", TensorProto.INT32, ("B",)),
            info("total", TensorProto.INT32, ()),
            *(info(f"past.{name}", half, cache) for name in names),
        ],
        [
            info("logits", half, ("B", "S", VOCABULARY)),
            *(info(f"present.{name}", half, cache) for name in names),
        ],
        [*weights, *_rotary_tables()],
        value_info=[info(f"{layer}.packed", half, ("B", "S", QKV)) for layer in range(LAYERS)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    with (folder / DATA_FILE).open("wb") as file:
        file.truncate(size)
    return size


def _weights():
    shapes = {"embedding": (VOCABULARY, HIDDEN), "final_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"{layer}.norm": (HIDDEN,),
            f"{layer}.qkv": (HIDDEN, QKV),
            f"{layer}.output": (HEADS * HEAD_DIM, HIDDEN),
            f"{layer}.inner_norm": (HIDDEN,),
            f"{layer}.gate": (HIDDEN, INNER),
            f"{layer}.up": (HIDDEN, INNER),
            f"{layer}.down": (INNER, HIDDEN),
        }
    shapes["head"] = (HIDDEN, VOCABULARY)
    tensors, end = [], 0
    for name, shape in shapes.items():
        length = 2 * int(np.prod(shape))
        tensors.append(_external(name, shape, end, length))
        end += -(-length // ALIGNMENT) * ALIGNMENT
    return tensors, end


def _external(name, shape, offset, length):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA_FILE), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _rotary_tables():
    angles = np.outer(np.arange(CONTEXT), 500_000.0 ** (-np.arange(HEAD_DIM // 2) / 64))
    tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
    return [numpy_helper.from_array(item.astype(np.float16), key) for key, item in tables.items()]


def _layer(layer):
    hidden, cache = f"hidden.{layer}", (f"{layer}.key", f"{layer}.value")
    attention = helper.make_node(
        "GroupQueryAttention",
        [
            f"{layer}.packed",
            "",
            "",
            *(f"past.{name}" for name in cache),
            "lengths",
            "total",
            "cos",
            "sin",
        ],
        [f"{layer}.attended", *(f"present.{name}" for name in cache)],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        do_rotary=1,
    )
    gate = f"{layer}.gated"
    return [
        _norm(hidden, f"{layer}.norm", f"{layer}.normed"),
        _product(f"{layer}.normed", f"{layer}.qkv", f"{layer}.packed"),
        attention,
        _product(f"{layer}.attended", f"{layer}.output", f"{layer}.mixed"),
        helper.make_node("Add", [hidden, f"{layer}.mixed"], [f"{layer}.middle"]),
        _norm(f"{layer}.middle", f"{layer}.inner_norm", f"{layer}.inner"),
        _product(f"{layer}.inner", f"{layer}.gate", gate),
        helper.make_node("Sigmoid", [gate], [f"{layer}.open"]),
        helper.make_node("Mul", [gate, f"{layer}.open"], [f"{layer}.silu"]),
        _product(f"{layer}.inner", f"{layer}.up", f"{layer}.raised"),
        helper.make_node("Mul", [f"{layer}.silu", f"{layer}.raised"], [f"{layer}.wide"]),
        _product(f"{layer}.wide", f"{layer}.down", f"{layer}.lowered"),
        helper.make_node("Add", [f"{layer}.middle", f"{layer}.lowered"], [f"hidden.{layer + 1}"]),
    ]


def _norm(value, weight, output):
    return helper.make_node("SimplifiedLayerNormalization", [value, weight], [output])


def _product(value, weight, output):
    return helper.make_node("MatMul", [value, weight], [output])
