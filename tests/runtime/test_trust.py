"""An engine folder is data: nothing of it runs as code, and nothing outside of it is read."""

import json

import onnx
import pytest
from onnx import external_data_helper

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.manifest import MANIFEST_FILE, MODEL_FILE
from tests.runtime.folders import write_engine

CANARY = "import pathlib; pathlib.Path({path!r}).write_text('ran')\n"


@pytest.fixture
def folder(tmp_path):
    return write_engine(tmp_path / "engine")


def load(folder):
    return gear_trt.load(folder, threads=1)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_code_that_a_tokenizer_brings_along_never_runs(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "tokenization_own.py").write_text(
        CANARY.format(path=str(ran)) + "class OwnTokenizer: pass\n"
    )
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    )
    with load(folder) as engine:
        try:
            assert engine.tokenizer("ok").input_ids  # read as data
        except GearError as error:
            assert error.code is ErrorCode.DAMAGED_ENGINE
    assert not ran.exists()


@pytest.mark.parametrize("way_out", ["../weights.bin", "{absolute}", "sub/../../weights.bin"])
def test_weights_outside_of_the_folder_are_refused(folder, tmp_path, way_out):
    outside = tmp_path / "weights.bin"
    model = onnx.load(folder / MODEL_FILE)
    tensor = model.graph.initializer[0]
    outside.write_bytes(tensor.raw_data)
    (folder / "sub").mkdir()
    external_data_helper.set_external_data(tensor, way_out.format(absolute=outside))
    tensor.ClearField("raw_data")
    (folder / MODEL_FILE).write_bytes(model.SerializeToString())
    with pytest.raises(GearError) as caught:
        load(folder)
    assert caught.value.code is ErrorCode.DAMAGED_ENGINE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("layers", 0, "num_kv_heads"), 0),
        (("layers", 0, "num_kv_heads"), 3),
        (("layers", 0, "num_heads"), 2**31),
        (("layers", 0, "head_dim"), 40),
        (("layers", 0, "head_dim"), -16),
        (("model", "vocab_size"), 0),
        (("model", "max_context"), 2**40),
        (("model", "eos_token_ids"), [-1]),
        (("layers",), []),
    ],
)
def test_numbers_that_no_model_has_are_refused(folder, path, value):
    content = json.loads((folder / MANIFEST_FILE).read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / MANIFEST_FILE).write_text(json.dumps(content))
    with pytest.raises(GearError) as caught:
        load(folder)
    assert caught.value.code is ErrorCode.DAMAGED_ENGINE
    assert "\n" not in caught.value.message


def test_a_cache_beyond_all_memory_is_refused(folder):
    content = json.loads((folder / MANIFEST_FILE).read_text())
    content["model"]["max_context"] = 2**31 - 1
    for layer in content["layers"]:
        layer |= {"num_heads": 2**20, "num_kv_heads": 2**20, "head_dim": 256}
    (folder / MANIFEST_FILE).write_text(json.dumps(content))
    with pytest.raises(GearError) as caught:
        load(folder)
    assert caught.value.code is ErrorCode.OUT_OF_MEMORY
    assert "max_tokens" in caught.value.hint


def test_a_vocabulary_that_is_not_the_graphs_is_refused(folder):
    content = json.loads((folder / MANIFEST_FILE).read_text())
    content["model"]["vocab_size"] = 2**31 - 1
    (folder / MANIFEST_FILE).write_text(json.dumps(content))
    with pytest.raises(GearError) as caught:
        load(folder)
    assert caught.value.code is ErrorCode.DAMAGED_ENGINE
    assert "260 logits" in caught.value.detail
