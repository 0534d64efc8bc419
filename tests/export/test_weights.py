"""No rewrite changes a weight: what would, is found."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export import data_file, export_model, pipeline
from gear_trt.export.build import onnxruntime
from gear_trt.export.passes.simplify import simplify
from gear_trt.export.passes.weights import WeightGuard, fingerprint
from gear_trt.runtime.manifest import MODEL_FILE
from tests.export import text_graphs as text
from tests.export.conftest import EXACT

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "int8": np.int8,
    "int64": np.int64,
    "bool": np.bool_,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
}


@pytest.fixture(params=["inline", "external"])
def path(request, tmp_path):
    """A model whose weights are in the file, or in one beside it."""
    path = tmp_path / "model.onnx"
    external = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 64}
    onnx.save(text.written_out(), path, **(external if request.param == "external" else {}))
    return path


def export(path):
    output = path.parent / "engine"
    export_model(path, output, config=EXACT, max_context=text.CONTEXT)
    return output / MODEL_FILE


def arrays(path):
    initializers = onnx.load(path).graph.initializer
    return {item.name: numpy_helper.to_array(item) for item in initializers}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_has_one_fingerprint_wherever_it_lies(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 2, 4096 * 257).astype(DTYPES[dtype])
    tensor = ir.tensor(values.reshape(257, 4096), name="weight")
    (external,) = ir.external_data.convert_tensors_to_external([tensor], tmp_path, "data.bin")
    proto = ir.from_proto(ir.to_proto(tensor))
    assert fingerprint(tensor) == fingerprint(external) == fingerprint(proto)
    values[77777] = 1 - int(values[77777])
    assert fingerprint(tensor) != fingerprint(external)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_element_that_is_not_finite_is_seen(dtype, value):
    values = np.full(3_000_001, -np.finfo(np.float16).max).astype(DTYPES[dtype])
    assert fingerprint(ir.tensor(values)).is_finite
    values[2_999_999] = value
    assert not fingerprint(ir.tensor(values)).is_finite


def test_an_export_leaves_source_and_weights_as_they_are(path):
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    expected, actual = arrays(path), arrays(export(path))
    kept = expected.keys() & actual.keys()
    assert {"embedding", "query_weight", "key_weight", "value_weight", "output_weight"} <= kept
    for name in kept:
        np.testing.assert_array_equal(actual[name], expected[name])
    assert all(file.read_bytes() == content for file, content in before.items())


def change_weight(model):
    weight = model.graph.initializers["output_weight"]
    array = weight.const_value.numpy().copy()
    array[3, 5] += 1e-6
    weight.const_value = ir.tensor(array, name=weight.name)


def swap_weights(model):
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1].name == "output_weight":
            node.replace_input_with(1, model.graph.initializers["query_weight"])


def forget_weight(model):
    model.graph.initializers.pop("output_weight")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (change_weight, "weight output_weight has changed"),
        (swap_weights, "reads query_weight in place of weight output_weight"),
        (forget_weight, "weight output_weight was removed, and node"),
    ],
)
def test_a_pass_that_changes_a_weight_is_found_out(path, monkeypatch, damage, fault):
    def spoil(model):
        simplify(model)
        damage(model)

    monkeypatch.setattr(pipeline, "simplify", spoil)
    with pytest.raises(GearError) as caught:
        export(path)
    assert caught.value.code is ErrorCode.VERIFICATION_FAILED
    assert fault in f"{caught.value.message}\n{caught.value.detail}"
    assert not (path.parent / "engine").exists()


def test_equal_weights_may_become_one():
    model = ir.from_proto(text.written_out())
    twin = ir.val("twin", const_value=model.graph.initializers["output_weight"].const_value)
    model.graph.register_initializer(twin)
    guard = WeightGuard(model)
    guard.note_readers()
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1].name == "output_weight":
            node.replace_input_with(1, twin)
    assert not list(guard.reader_faults())


def test_a_flipped_bit_of_a_written_file_is_found(path):
    model = ir.load(path)
    guard = WeightGuard(model)
    written = path.with_name("written.onnx")
    ir.save(model, written, external_data="written.data", size_threshold_bytes=0)
    assert not list(guard.content_faults(model, written))
    data = path.with_name("written.data")
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    (fault,) = guard.content_faults(model, written)
    assert fault.endswith("has changed")


def test_data_files_are_the_engines_own(path):
    model = export(path)
    for file in (*path.parent.iterdir(), *model.parent.iterdir()):
        assert file.is_dir() or file.stat().st_nlink == 1
    onnx.checker.check_model(str(model))
    onnx.load(model)


def test_the_copy_of_a_large_data_file_is_announced(tmp_path, monkeypatch):
    monkeypatch.setattr(data_file, "_FICLONE", 0)
    monkeypatch.setattr(data_file, "_COPY_BYTES", 4096)
    monkeypatch.setattr(onnxruntime, "_GIGA", 1e4)
    path = tmp_path / "model.onnx"
    onnx.save(text.written_out(), path, save_as_external_data=True, location="weights.bin")
    told = []
    export_model(
        path, tmp_path / "engine", config=EXACT, max_context=text.CONTEXT, progress=told.append
    )
    copying = [line for line in told if line.startswith("copying weights.bin: ")]
    assert len(copying) == len(set(copying)) > 5
    assert " 100 % of " in copying[-1]


def test_files_of_one_name_do_not_meet(tmp_path):
    """Two data files, one called as the engine calls its own."""
    model = text.written_out()
    for name in ("model.onnx.data", "gear.json"):
        (tmp_path / name).write_bytes(b"")
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name.endswith("weight"):
            file = tmp_path / ("model.onnx.data", "gear.json")[index % 2]
            offset, content = file.stat().st_size, tensor.raw_data
            with file.open("ab") as stream:
                stream.write(content)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (
                ("location", file.name),
                ("offset", offset),
                ("length", len(content)),
            ):
                tensor.external_data.add(key=key, value=str(value))
    onnx.save(model, tmp_path / "model.onnx")
    expected, actual = arrays(tmp_path / "model.onnx"), arrays(export(tmp_path / "model.onnx"))
    for name in expected.keys() & actual.keys():
        np.testing.assert_array_equal(actual[name], expected[name])
