"""Engines of a tiny model, built by the real TensorRT-RTX, which needs no GPU for that."""

import hashlib
import json
import os
import re
import shutil
from contextlib import contextmanager

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from gear_trt.cli.export import app
from gear_trt.cli.main import app as gear
from gear_trt.errors import ErrorCode, ExitStatus, GearError
from gear_trt.export import TensorRTOptions, add_tensorrt, export_model
from gear_trt.export.build import tensorrt
from gear_trt.export.build.tensorrt import LAYERS_FILE, LOG_FILE, build_engine
from gear_trt.export.report import ExportReport
from gear_trt.runtime.manifest import ENGINE_FILE, MODEL_FILE, EngineLimits, Manifest
from gear_trt.spec import CompressionConfig
from gear_trt.tensorrt.library import Flavour
from gear_trt.tensorrt.plugin import LIBRARY_NAME, LIBRARY_VARIABLE
from tests.export import text_graphs as text
from tests.export.tensorrt import plugin_library

PROFILES = 2


def rtx(**changes):
    return TensorRTOptions(flavour=Flavour.RTX, max_batch=3, max_new_tokens=16, **changes)


@pytest.fixture(scope="module", autouse=True)
def library():
    path = plugin_library()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LIBRARY_VARIABLE, str(path))
        yield path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An engine folder without a TensorRT engine."""
    folder = tmp_path_factory.mktemp("exported")
    onnx.save(text.written_out(), folder / "model.onnx")
    config = CompressionConfig.preset("k4v2", rank=2, outliers=2)
    export_model(folder / "model.onnx", folder / "out", config=config, max_context=256)
    return folder / "out"


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "out")


@pytest.fixture(scope="module")
def built_once(exported, tmp_path_factory):
    """An engine folder with an engine, the build's report, and the parts that it said are done."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("built") / "out")
    told = []
    report = add_tensorrt(folder, rtx(), progress=lambda stage, done=None: told.append(done))
    return folder, report, [done for done in told if done is not None]


@pytest.fixture
def built(built_once, tmp_path):
    """A copy of the folder with an engine."""
    return shutil.copytree(built_once[0], tmp_path / "out")


def failure(folder, options, code):
    with pytest.raises(GearError) as caught:
        build_engine(folder, options)
    assert caught.value.code is code
    return caught.value


def test_an_engine_with_the_plugin_in_both_profiles(built_once, library):
    folder, report, parts = built_once
    build, facts = report.tensorrt, Manifest.read(folder).tensorrt
    assert build.facts == facts
    assert build.plugin_layers == PROFILES
    assert build.engine_bytes == (folder / ENGINE_FILE).stat().st_size
    assert b"GearAttention.0" in (folder / ENGINE_FILE).read_bytes()
    assert 50e6 < build.peak_memory_bytes < 2e9
    assert facts.flavour == "tensorrt-rtx"
    assert facts.version.startswith("1.")
    assert facts.graph_sha256 == hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()
    assert {"8.0", "8.6", "12.0"} <= set(facts.compute_capabilities)
    assert "7.5" not in facts.compute_capabilities
    # sinks 4, chunks of 64: (256 - 4) // 64
    assert facts.limits == EngineLimits(
        max_batch=3, max_new_tokens=16, max_pages=3, num_pages=9, slots=3
    )
    assert (folder / facts.plugin).read_bytes() == library.read_bytes()
    assert parts == sorted(parts)
    assert parts[-1] > 0.7
    assert ExportReport.read(folder) == report
    assert report.seconds["tensorrt"] == build.seconds
    assert "tensorrt-rtx" in (folder / "report.md").read_text()


def test_state_is_updated_in_place(built):
    """TensorRT's list of the engine's layers shows the plugin at the engine's own state tensors."""
    lines = (built / LOG_FILE).read_text().splitlines()
    layers = [line for line in lines if "GearAttention.0" in line and "LayerType: " in line]
    assert len(layers) == PROFILES
    for line in layers:
        inputs, outputs = line.split("Outputs: ")
        for state in ("page_pool", "residual_buffer"):
            assert re.search(rf"Name: {state}\.0( \[profile 1\])?,", inputs)
            assert re.search(rf"Name: {state}_out\.0( \[profile 1\])?,", outputs)


def test_the_plugin_inside_the_engine(built, library):
    beside = (built / ENGINE_FILE).stat().st_size
    options = rtx(embed_plugin=True, weight_streaming=True, builder_level=0)
    facts = build_engine(built, options).facts
    assert (facts.plugin, facts.streams_weights) == (None, True)
    assert not (built / LIBRARY_NAME).exists()
    assert (built / ENGINE_FILE).stat().st_size >= beside + library.stat().st_size


def test_compute_capabilities(folder):
    facts = build_engine(folder, rtx(compute_capabilities=("8.6", "12.0"))).facts
    assert facts.compute_capabilities == ("8.6", "12.0")
    for unknown in ("9.0", "7.5", "8,6"):
        error = failure(folder, rtx(compute_capabilities=(unknown,)), ErrorCode.BAD_CONFIG)
        assert error.message.endswith(f"builds for no compute capability {unknown}")
        assert "it offers 8.0, 8.6" in error.hint


@pytest.mark.parametrize("form", ["transformers", "dynamo-18", "dynamo-23", "genai"])
def test_graphs_of_other_exporters(engines, tmp_path, form):
    folder = shutil.copytree(engines(form), tmp_path / "out")
    assert build_engine(folder, rtx()).plugin_layers == 2 * PROFILES


@contextmanager
def changed_graph(folder):
    path = folder / MODEL_FILE
    model = onnx.load(path, load_external_data=False)
    yield model.graph
    onnx.save(model, path)


def test_a_node_that_tensorrt_does_not_know(folder):
    with changed_graph(folder) as graph:
        node = next(node for node in graph.node if node.op_type == "MatMul")
        node.name, node.op_type, node.domain = "wrong", "Mystery", "custom"
    error = failure(folder, rtx(), ErrorCode.BUILD_FAILED)
    assert error.message.startswith("TensorRT cannot parse node wrong (Mystery): ")
    assert str(folder / LOG_FILE) in error.hint
    assert "Mystery" in (folder / LOG_FILE).read_text()
    assert not (folder / ENGINE_FILE).exists()


def test_a_layer_that_the_plugin_refuses(folder):
    """A graph of another page layout whose manifest does not say so."""
    with changed_graph(folder) as graph:
        node = next(node for node in graph.node if node.op_type == "GearAttention")
        for attribute in node.attribute:
            if attribute.name == "layout_hash":
                attribute.CopyFrom(helper.make_attribute("layout_hash", "0123"))
    error = failure(folder, rtx(), ErrorCode.BUILD_FAILED)
    assert "GearAttention.0 (GearAttention): GearAttention: made for layout_hash" in error.message


def test_a_build_that_aborts_is_an_error(built, monkeypatch):
    """Without its link the parser does not find its own library, and ends the process."""

    @contextmanager
    def without_link(flavour):
        yield dict(os.environ)

    before = (built / ENGINE_FILE).read_bytes(), (built / "gear.json").read_bytes()
    monkeypatch.setattr(tensorrt, "loader_environment", without_link)
    error = failure(built, rtx(), ErrorCode.BUILD_FAILED)
    assert error.message == "TensorRT ended the process that builds, with signal SIGABRT"
    assert "terminate called" in error.detail
    assert ((built / ENGINE_FILE).read_bytes(), (built / "gear.json").read_bytes()) == before
    assert not list(built.glob("*.partial"))


def test_an_interrupted_build_leaves_nothing(folder):
    def interrupt(stage, done=None):
        if done is not None:
            raise KeyboardInterrupt

    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(KeyboardInterrupt):
        build_engine(folder, rtx(), progress=interrupt)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*before, LOG_FILE])


def plugin_types(folder):
    """Types of the first three inputs of every plugin layer, by TensorRT's list of the layers."""
    lines = (folder / LOG_FILE).read_text().splitlines()
    layers = [line for line in lines if "GearAttention.0" in line and "LayerType: " in line]
    return [re.findall(r"Datatype: (\w+)", line)[:3] for line in layers]


def test_the_command_builds_what_its_flags_say(tmp_path):
    """Of a model in bfloat16, which goes into the plugin as it is."""
    words = "--tensorrt tensorrt-rtx --max-batch 2 --max-new-tokens 8 --max-context 64"
    flags = [*words.split(), "--compute-capability", "8.6", "--compute-capability", "8.9"]
    brain = text.retyped(text.written_out(), TensorProto.FLOAT, TensorProto.BFLOAT16)
    onnx.save(brain, tmp_path / "model.onnx")
    arguments = (tmp_path / "model.onnx", "-o", tmp_path / "out", *flags)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == ExitStatus.OK
    assert result.stderr.splitlines().count("building with tensorrt-rtx") == 1
    facts = Manifest.read(tmp_path / "out").tensorrt
    assert facts.compute_capabilities == ("8.6", "8.9")
    assert plugin_types(tmp_path / "out") == [["BFloat16"] * 3] * PROFILES
    assert facts.limits == EngineLimits(
        max_batch=2, max_new_tokens=8, max_pages=1, num_pages=2, slots=2
    )
    (row,) = [line for line in result.stdout.splitlines() if line.startswith(" TensorRT ")]
    assert f"tensorrt-rtx {facts.version}: " in row
    assert "for compute capability 8.6, 8.9, built in " in row


def test_gear_build(built):
    words = ["build", str(built), "--tensorrt", "tensorrt-rtx", "--max-batch", "5", "--json"]
    result = CliRunner().invoke(gear, words)
    assert result.exit_code == ExitStatus.OK
    fields = json.loads(result.stdout)
    assert fields.pop("schema") == "gear.export/1"
    assert ExportReport.model_validate(fields) == ExportReport.read(built)
    assert fields["tensorrt"]["facts"]["limits"]["max_batch"] == 5
    assert Manifest.read(built).tensorrt.limits.slots == 5


def test_the_folder_is_complete_where_the_build_fails(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "_run", lambda request, progress: 1 / 0)
    source = exported.parent / "model.onnx"
    with pytest.raises(ZeroDivisionError):
        export_model(
            source, tmp_path / "out", config=CompressionConfig(), max_context=64, tensorrt=rtx()
        )
    assert Manifest.read(tmp_path / "out").tensorrt is None
    assert ExportReport.read(tmp_path / "out").tensorrt is None


@pytest.fixture
def called_tensorrt(tmp_path, monkeypatch):
    """TensorRT-RTX under the name and the version of TensorRT: nearly the same interface."""
    code = "from tensorrt_rtx_bindings import *\n__version__ = '11.4.0.106'\n"
    (tmp_path / "modules").mkdir()
    module = tmp_path / "modules" / "tensorrt.py"
    module.write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    real = tensorrt.loader_environment
    monkeypatch.setattr(tensorrt, "loader_environment", lambda flavour: real(Flavour.RTX))
    return module


NULL_BUILDER = """
class Builder:
    def __init__(self, log):
        log.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")
"""


def test_a_machine_that_tensorrt_cannot_build_on(folder, called_tensorrt):
    with called_tensorrt.open("a") as module:
        module.write(NULL_BUILDER)
    error = failure(folder, TensorRTOptions(flavour=Flavour.TENSORRT), ErrorCode.BUILD_FAILED)
    assert error.message == (
        "TensorRT cannot make a builder on this machine: CUDA initialization failure with error: 35"
    )


GPU = """
import sys
sys.modules["__main__"].count_gpus = lambda: 1
class Runtime:
    def __init__(self, log):
        self.registry = get_plugin_registry()
    def get_plugin_registry(self):
        return self.registry
    def deserialize_cuda_engine(self, engine):
        assert any(creator.name == "GearAttention" for creator in self.registry.all_creators)
        return self
    def create_engine_inspector(self):
        return self
    def get_engine_information(self, form):
        return f'{{"Layers": [], "form": "{form.name}"}}'
"""


def test_the_inspector_is_asked_where_there_is_a_gpu(folder, called_tensorrt):
    """No GPU is at hand: what stands in for the runtime shows when and how ours is called."""
    with called_tensorrt.open("a") as module:
        module.write(GPU)
    build_engine(folder, TensorRTOptions(flavour=Flavour.TENSORRT))
    assert json.loads((folder / LAYERS_FILE).read_text()) == {"Layers": [], "form": "JSON"}


@pytest.mark.usefixtures("called_tensorrt")
def test_the_same_code_builds_with_tensorrt(folder, tmp_path):
    cache = tmp_path / "timings"
    options = TensorRTOptions(flavour=Flavour.TENSORRT, timing_cache=cache)
    facts = build_engine(folder, options).facts
    assert (facts.flavour, facts.version) == ("tensorrt", "11.4.0.106")
    first = cache.read_bytes()
    assert first
    build_engine(folder, options)
    assert cache.read_bytes() == first


@pytest.mark.usefixtures("called_tensorrt")
def test_a_timing_cache_that_cannot_be_written(folder, tmp_path):
    options = TensorRTOptions(flavour=Flavour.TENSORRT, timing_cache=tmp_path / "no" / "timings")
    with pytest.raises(FileNotFoundError) as caught:
        build_engine(folder, options)
    assert caught.value.filename == str(tmp_path / "no" / "timings")


def test_the_library_of_the_folder_itself(built, monkeypatch):
    monkeypatch.setenv(LIBRARY_VARIABLE, str(built / LIBRARY_NAME))
    assert build_engine(built, rtx()).facts.plugin == LIBRARY_NAME
    assert (built / LIBRARY_NAME).is_file()


def test_a_library_that_is_not_there(folder, monkeypatch):
    monkeypatch.setenv(LIBRARY_VARIABLE, str(folder / "nowhere.so"))
    error = failure(folder, rtx(), ErrorCode.MISSING_LIBRARY)
    assert error.message == f"no TensorRT plugin library at {folder / 'nowhere.so'}"


def test_folders_of_earlier_versions_load(folder):
    path = folder / "gear.json"
    fields = json.loads(path.read_text())
    del fields["tensorrt"]
    path.write_text(json.dumps(fields))
    assert Manifest.read(folder).tensorrt is None
