"""Damaged, incomplete and unknown models: an error with a cause, and no folder."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export import export_model, inspect_model
from tests.export import text_graphs as text
from tests.export.conftest import EXACT


@pytest.fixture
def model():
    return text.written_out()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def refused(path, **options):
    """Export, expect an error, and check that nothing was left."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(GearError) as caught:
        options = {"max_context": text.CONTEXT, **options}
        export_model(path, path.parent / "engine", config=EXACT, **options)
    assert sorted(path.parent.iterdir()) == before
    return caught.value


def save_with_external_data(model, path):
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)


def test_a_missing_file(path):
    error = refused(path)
    assert error.code is ErrorCode.MISSING_FILE
    assert "does not exist" in error.message


@pytest.mark.parametrize("kept", [0.5, 0.01])
def test_a_truncated_file(model, path, kept):
    content = model.SerializeToString()
    path.write_bytes(content[: int(len(content) * kept)])
    error = refused(path)
    assert error.code is ErrorCode.DAMAGED_MODEL
    assert "is damaged" in error.message


@pytest.mark.parametrize("content", [b"", b"this is no model at all", bytes(range(256)) * 9])
def test_a_file_that_is_no_model(path, content):
    path.write_bytes(content)
    assert refused(path).code is ErrorCode.DAMAGED_MODEL


def test_missing_external_data(model, path):
    save_with_external_data(model, path)
    (path.parent / "weights.bin").unlink()
    error = refused(path)
    assert error.code is ErrorCode.MISSING_FILE
    assert "weights.bin" in error.message
    assert "put weights.bin beside model.onnx" in error.hint


def test_truncated_external_data(model, path):
    save_with_external_data(model, path)
    with (path.parent / "weights.bin").open("r+b") as file:
        file.truncate(100)
    error = refused(path)
    assert error.code is ErrorCode.DAMAGED_MODEL
    assert "it ends before weight" in error.message


def test_external_data_outside_of_the_folder_is_not_read(model, tmp_path):
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "model.onnx"
    save_with_external_data(model, path)
    (path.parent / "weights.bin").rename(tmp_path / "secret.bin")
    stored = onnx.load(path, load_external_data=False)
    for tensor in stored.graph.initializer:
        tensor.external_data[0].value = "../secret.bin"
    onnx.save(stored, path)
    error = refused(path)
    assert error.code is ErrorCode.DAMAGED_MODEL
    assert "outside of its folder" in error.message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(model, path, value):
    for tensor in model.graph.initializer:
        if tensor.name == "key_weight":
            array = numpy_helper.to_array(tensor).copy()
            array[3, 5] = value
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)
    error = refused(path)
    assert error.code is ErrorCode.NON_FINITE_WEIGHTS
    assert "key_weight" in error.message


def test_a_model_without_attention(path):
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        g (int64[batch, tokens] input_ids) => (float[batch, tokens, 1] logits) {
          narrow = Cast<to=1>(input_ids)
          axis = Constant<value_ints=[-1]>()
          logits = Unsqueeze(narrow, axis)
        }
    """)
    onnx.save(model, path)
    error = refused(path)
    assert error.code is ErrorCode.NO_KV_CACHE
    assert "no attention layer that gear_trt knows" in error.message


def test_the_closest_near_miss_is_named(path):
    onnx.save(text.written_out(("Concat<axis=2>(old_keys, key)", "Identity(key)")), path)
    error = refused(path)
    assert error.code is ErrorCode.NO_KV_CACHE
    assert error.message == "0 of 1 attention layers can be routed"
    assert error.detail.startswith("closest: layer 0, node ")
    assert "check failed: key comes from MatMul node" in error.detail


def test_an_unknown_context(model, path):
    onnx.save(model, path)
    error = refused(path, max_context=None)
    assert error.code is ErrorCode.MISSING_FILE
    assert "--max-context" in error.hint


def test_a_damaged_config_file(model, path):
    onnx.save(model, path)
    (path.parent / "config.json").write_text('{"model_type": ')
    error = refused(path)
    assert error.code is ErrorCode.DAMAGED_MODEL
    assert "config.json" in error.message


def test_config_files_beside_the_model_give_its_facts(model, path):
    onnx.save(model, path)
    files = {
        "config.json": {"model_type": "toy", "max_position_embeddings": 48, "eos_token_id": 9},
        "generation_config.json": {"eos_token_id": [3, 5], "pad_token_id": 7},
    }
    for name, content in files.items():
        (path.parent / name).write_text(json.dumps(content))
    report = export_model(path, path.parent / "engine", config=EXACT)
    assert report.model.architecture == "toy"
    assert report.model.max_context == 48
    assert report.model.eos_token_ids == (3, 5)
    assert report.model.pad_token_id == 7
    assert (path.parent / "engine" / "generation_config.json").is_file()


def test_a_folder_with_one_onnx_file_stands_for_it(model, path, tmp_path):
    onnx.save(model, path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 48}')
    report = inspect_model(tmp_path, config=EXACT)
    assert report.routable
    assert report.model.max_context == 48


def test_a_tokenizer_may_come_from_another_folder(model, path, checkpoint):
    onnx.save(model, path)
    report = export_model(
        path,
        path.parent / "engine",
        config=EXACT,
        max_context=text.CONTEXT,
        tokenizer=checkpoint,
    )
    assert report.has_tokenizer


def test_a_folder_without_a_tokenizer_is_refused_as_one(model, path):
    onnx.save(model, path)
    error = refused(path, tokenizer=path.parent)
    assert error.code is ErrorCode.MISSING_FILE
    assert "has no tokenizer.json" in error.message


def test_files_linked_from_a_download_cache(model, tmp_path):
    """Hubs keep files under their hashes in one folder, and link them from one per version."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_with_external_data(model, tmp_path / "model.onnx")
    for name, blob in (("model.onnx", "a1"), ("weights.bin", "b2")):
        (tmp_path / name).rename(blobs / blob)
        (snapshot / name).symlink_to(blobs / blob)
    report = inspect_model(snapshot / "model.onnx", config=EXACT, max_context=text.CONTEXT)
    assert report.routable


def test_a_link_out_of_the_folder(model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_with_external_data(model, folder / "model.onnx")
    (folder / "weights.bin").rename(tmp_path / "secret")
    (folder / "weights.bin").symlink_to(tmp_path / "secret")
    error = refused(folder / "model.onnx")
    assert error.code is ErrorCode.DAMAGED_MODEL
    assert "outside of its folder" in error.message


def test_a_node_whose_operator_is_no_text(model, path):
    content = model.SerializeToString()
    name = model.graph.node[0].op_type.encode()
    path.write_bytes(content.replace(name, b"\xff" * len(name)))
    error = refused(path)
    assert error.code is ErrorCode.DAMAGED_MODEL


def test_a_weight_that_fits_no_memory(model, path, monkeypatch):
    """numpy's MemoryError may have no text."""

    def fail(self):
        raise MemoryError

    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr("onnx_ir.TensorProtoTensor.numpy", fail)
    error = refused(path)
    assert error.code is ErrorCode.DAMAGED_MODEL
    assert "MemoryError" in error.message
