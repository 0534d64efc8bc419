"""The Triton model repository: Triton's own schema reads it, and its Python model answers."""

import importlib.metadata
import importlib.util
import json
import sys

import onnx
import pytest
from google.protobuf import json_format, text_format
from typer.testing import CliRunner

from gear_trt.cli.main import app
from gear_trt.errors import ExitStatus
from gear_trt.runtime.engine import load
from gear_trt.runtime.manifest import (
    ENGINE_FILE,
    MODEL_FILE,
    EngineLimits,
    Manifest,
    TensorRTFacts,
)
from tests.graphs import ToyModel
from tests.runtime.folders import write_engine
from tests.serving import triton_utils
from tests.serving.servers import wait_until

LIMITS = ("--max-cache", "24MiB", "--max-batch", "4", "--backend", "onnxruntime")


def load_file(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def schema():
    """Triton's model_config.proto; tritonclient itself needs other versions of its packages."""
    try:
        files = importlib.metadata.files("tritonclient") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tritonclient, which carries Triton's config schema, is not installed")
    path = next(file for file in files if file.match("tritonclient/grpc/model_config_pb2.py"))
    return load_file("model_config_pb2", path.locate())


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engine") / "toy")


@pytest.fixture(scope="module")
def repository(tmp_path_factory, engine):
    repository = tmp_path_factory.mktemp("triton") / "models"
    result = CliRunner().invoke(app, ["triton", str(engine), str(repository), *LIMITS, "--json"])
    assert result.exit_code == ExitStatus.OK
    command = json.loads(result.stdout)["command"]
    assert command == ["tritonserver", f"--model-repository={repository}"]
    return repository


@pytest.fixture(scope="module")
def config(schema, repository):
    text = (repository / "toy" / "config.pbtxt").read_text()
    return text_format.Parse(text, schema.ModelConfig())


@pytest.fixture
def model(repository, config, monkeypatch):
    triton_utils.install(monkeypatch)
    monkeypatch.delitem(sys.modules, "gear_trt.serving.triton.model", raising=False)
    module = load_file("model", repository / "toy" / "1" / "model.py")
    model = module.TritonPythonModel()
    config = json_format.MessageToJson(config, preserving_proto_field_name=True)
    model.initialize({"model_config": config})
    yield model
    model.finalize()


def answer(model, **inputs):
    """Send one request; returns its responses."""
    request = triton_utils.Request(**inputs)
    assert model.execute([request]) is None
    assert request.sender.done.wait(20)
    return request.sender.responses


def test_config(config, schema):
    assert (config.name, config.backend) == ("toy", "python")
    assert config.model_transaction_policy.decoupled
    assert config.parameters["max_cache_bytes"].string_value == str(24 << 20)
    assert config.parameters["max_batch"].string_value == "4"
    assert config.parameters["backend"].string_value == "onnxruntime"
    assert config.max_batch_size == 0
    optional = {one.name: one.optional for one in config.input}
    assert optional == {"text_input": False, "sampling_parameters": True, "chat": True}
    assert [group.kind for group in config.instance_group] == [schema.ModelInstanceGroup.KIND_CPU]


def test_answer_is_the_engines(model, engine):
    responses = answer(model, text_input=b"Hi", sampling_parameters=b'{"max_new_tokens": 12}')
    with load(engine, threads=1) as alone:
        expected = alone.generate("Hi", max_new_tokens=12)
    text = b"".join(response.outputs["text_output"] for response in responses)
    assert text.decode() == expected.text
    assert responses[-1].outputs["finish_reason"] == b"length"
    assert responses[-1].outputs["generated_tokens"] == 12
    assert responses[-1].outputs["prompt_tokens"] == expected.prompt_tokens
    assert all(not response.outputs["finish_reason"] for response in responses[:-1])


def test_text_that_is_no_chat(model):
    inputs = {"text_input": b"Hi", "sampling_parameters": b'{"max_new_tokens": 2}'}
    assert answer(model, **inputs, chat=False)[-1].outputs["prompt_tokens"] == 2
    assert answer(model, **inputs, chat=True)[-1].outputs["prompt_tokens"] == 4


def test_outputs_are_the_configs(model, config):
    (*_, last) = answer(model, text_input=b"Hi", sampling_parameters=b'{"max_new_tokens": 2}')
    assert sorted(last.outputs) == sorted(output.name for output in config.output)


def test_several_requests_at_once(model):
    requests = [triton_utils.Request(text_input=b"a" * count) for count in range(1, 7)]
    model.execute(requests)
    assert all(request.sender.done.wait(20) for request in requests)
    assert all(request.sender.responses[-1].error is None for request in requests)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text_input": b""}, "the prompt is empty"),
        ({"text_input": b"\xff"}, "text_input is not UTF-8"),
        ({"text_input": b"Hi", "sampling_parameters": b"{"}, "no JSON object"),
        ({"text_input": b"Hi", "sampling_parameters": b"7"}, "it is a int"),
        ({"text_input": b"Hi", "sampling_parameters": b'{"best": 1}'}, "best"),
        ({"text_input": b"x" * 500}, "500"),
    ],
)
def test_bad_requests(model, inputs, message):
    (refusal,) = answer(model, **inputs, chat=False)
    assert message in refusal.error.message


def test_client_that_leaves(model):
    request = triton_utils.Request(
        text_input=b"Hi", sampling_parameters=b'{"max_new_tokens": 390, "eos_token_id": []}'
    )
    request.sender.client_left = True
    model.execute([request])
    assert request.sender.done.wait(20)
    assert request.sender.responses[-1].outputs["finish_reason"] == b"cancelled"
    wait_until(lambda: model._scheduler.stats().running == 0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tensorrt_engine_has_a_model_of_steps(tmp_path, schema, dtype):
    """Every input and output of the graph is in the config, as input, output or state."""
    engine = write_engine(tmp_path / "toy", ToyModel(dtype=dtype))
    add_tensorrt_engine(engine, flavour="tensorrt", version_compatible=True)
    result = CliRunner().invoke(app, ["triton", str(engine), str(tmp_path / "models")])
    folder = tmp_path / "models" / "toy-step"
    assert f"--backend-config=tensorrt,plugins={folder}/1/libplugin.so" in result.stdout
    assert "--backend-config=tensorrt,version-compatible=true" in result.stdout
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["libplugin.so", ENGINE_FILE]
    config = text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())
    assert config.default_model_filename == ENGINE_FILE
    states = config.sequence_batching.state
    graph = onnx.load(engine / MODEL_FILE).graph
    assert names(graph.input) == names(config.input) | {state.input_name for state in states}
    assert names(graph.output) == names(config.output) | {state.output_name for state in states}
    types = {one.name: one.type.tensor_type for one in (*graph.input, *graph.output)}
    for one in (*config.input, *config.output):
        check_tensor(schema, types[one.name], one.data_type, one.dims)
    for state in states:
        check_tensor(schema, types[state.input_name], state.data_type, state.dims)
        assert state.use_same_buffer_for_input_output
        assert list(state.initial_state[0].dims) == list(state.dims)
        assert state.initial_state[0].zero_data
    pools = [state.dims[0] for state in states if state.input_name.startswith("page_pool")]
    assert pools == [32, 32]


def test_engine_of_tensorrt_rtx_is_left_out(tmp_path):
    engine = write_engine(tmp_path / "toy")
    add_tensorrt_engine(engine, flavour="tensorrt-rtx")
    result = CliRunner().invoke(app, ["triton", str(engine), str(tmp_path / "models")])
    assert result.exit_code == ExitStatus.OK
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["toy"]


def add_tensorrt_engine(folder, **facts):
    """Let a folder say that it has an engine: its files are copied, never looked into."""
    limits = EngineLimits(max_batch=4, max_new_tokens=64, max_pages=8, num_pages=32, slots=4)
    facts = TensorRTFacts(
        version="11.4.0.106",
        graph_sha256="",
        compute_capabilities=("9.0",),
        plugin="libplugin.so",
        limits=limits,
        **facts,
    )
    Manifest.read(folder).model_copy(update={"tensorrt": facts}).write(folder)
    (folder / ENGINE_FILE).write_bytes(b"engine")
    (folder / "libplugin.so").write_bytes(b"plugin")


def names(tensors):
    return {tensor.name for tensor in tensors}


def check_tensor(schema, expected, data_type, dims):
    triton_types = {"FLOAT": "FP32", "FLOAT16": "FP16", "INT32": "INT32", "INT64": "INT64"}
    name = triton_types[onnx.TensorProto.DataType.Name(expected.elem_type)]
    assert data_type == schema.DataType.Value(f"TYPE_{name}")
    assert len(dims) == len(expected.shape.dim)
    for size, dim in zip(dims, expected.shape.dim, strict=True):
        assert not dim.dim_value or size == dim.dim_value


def test_what_is_refused(engine, repository, tmp_path):
    for arguments, message in (
        ((engine, repository), "exists"),
        ((tmp_path, repository), "gear-export"),
        ((engine, repository, "--name", "../x"), "is no name for a model"),
    ):
        result = CliRunner().invoke(app, ["triton", *map(str, arguments)])
        assert result.exit_code == ExitStatus.FAILED
        assert message in result.stderr
    assert [path.name for path in repository.iterdir()] == ["toy"]
