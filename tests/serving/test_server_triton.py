"""The Triton model repository: Triton's own schema reads it, and its Python model answers."""

import importlib.metadata
import importlib.util
import json
import sys

import pytest
from google.protobuf import json_format, text_format
from typer.testing import CliRunner

from gear_trt.cli.main import app
from gear_trt.errors import ExitStatus
from gear_trt.runtime.engine import load
from tests.runtime.folders import write_engine
from tests.serving import triton_utils
from tests.serving.servers import wait_until

LIMITS = ("--max-cache", "24MiB", "--max-batch", "4")


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
    assert json.loads(result.stdout)["folder"] == str(repository / "toy")
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
