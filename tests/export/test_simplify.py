"""Rules apply where they change nothing, and nowhere else."""

from collections import Counter

import onnx
import onnx_ir as ir
import pytest

from gear_trt.export.passes.simplify import simplify

RESHAPES = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B, S, 64] x) => (float[{result}] y)
<int64[4] split = {{0, 0, 4, 16}}, int64[3] merge = {{{merge}}}> {{
  heads = Reshape(x, split)
  y = Reshape(heads, merge)
}}
"""
ROTATION = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B, S, 64] x, float[B, S, 8] cos, float[B, S, 8] sin) => (float[{result}] y)
<int64[4] split = {{0, 0, {heads}, -1}}, int64[3] merge = {{{merge}}}> {{
  x4 = Reshape(x, split)
  x_heads_first = Transpose<perm=[0, 2, 1, 3]>(x4)
  rotated = RotaryEmbedding(x_heads_first, cos, sin)
  heads_last = Transpose<perm=[0, {order}, 3]>(rotated)
  y = Reshape(heads_last, merge)
}}
"""
NORM = """
<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
g (float[B, S, 64] x, float[B, S, 64] skip) => (float[B, S, 64] y, float[B, S, 64] z)
<float[64] weight = {{{weight}}}> {{
  y, mean, deviation, sum = com.microsoft.SkipSimplifiedLayerNormalization(x, skip, weight)
  z = Neg({read})
}}
"""
UNDONE = {"result": "B, S, 64", "merge": "0, 0, 64"}


def simplified(template, **parts):
    proto = onnx.shape_inference.infer_shapes(
        onnx.parser.parse_model(template.format(**parts)), data_prop=True
    )
    model = ir.from_proto(proto)
    simplify(model)
    return model.graph


def operators(graph):
    return Counter(node.op_type for node in graph)


def test_a_reshape_and_its_inverse_go():
    assert operators(simplified(RESHAPES, **UNDONE)) == {"Identity": 1}


def test_a_reshape_to_another_shape_stays():
    graph = simplified(RESHAPES, result="B, T, 32", merge="0, -1, 32")
    assert operators(graph) == {"Reshape": 2}


@pytest.mark.parametrize(
    ("read", "kept"), [("sum", ["y", "", "", "sum"]), ("mean", ["y", "mean", "", ""])]
)
def test_optional_outputs_that_nobody_reads_are_left_out(read, kept):
    graph = simplified(NORM, weight=", ".join(["1"] * 64), read=read)
    assert [output.name for output in graph.node(0).outputs] == kept


def test_a_rotation_between_transposes_is_done_heads_last():
    graph = simplified(ROTATION, heads=4, order="2, 1", **UNDONE)
    assert operators(graph) == {"RotaryEmbedding": 1}
    assert graph.node(0).attributes.get_int("num_heads") == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "1, 2"},
        {"result": "B, T, 32", "merge": "0, -1, 32"},
    ],
)
def test_a_rotation_between_other_steps_stays(changes):
    graph = simplified(ROTATION, **{"heads": 4, "order": "2, 1", **UNDONE, **changes})
    assert operators(graph)["Reshape"] == 2
