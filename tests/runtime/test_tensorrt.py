"""The TensorRT backend over a stand-in for the module, which runs ONNX Runtime's CPU engine."""

import hashlib
import importlib.util
import logging

import numpy as np
import onnxruntime
import pytest
import torch

import gear_trt
from gear_trt import driver
from gear_trt import tensorrt as plugins
from gear_trt.driver import Gpu
from gear_trt.errors import ErrorCode, ExitStatus, GearError
from gear_trt.export.build.tensorrt import build_engine
from gear_trt.export.build.tensorrt_plan import TensorRTOptions
from gear_trt.runtime import choice, requirements
from gear_trt.runtime.choice import BackendName, choose
from gear_trt.runtime.engine import Engine
from gear_trt.runtime.manifest import (
    ENGINE_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    EngineLimits,
    Manifest,
    TensorRTFacts,
)
from gear_trt.runtime.model import Model
from gear_trt.runtime.options import GenerationOptions
from gear_trt.runtime.tensorrt import check as check_module
from gear_trt.runtime.tensorrt.backend import TensorRTBackend
from gear_trt.runtime.tensorrt.check import EngineFile, check
from gear_trt.runtime.tensorrt.loading import load
from gear_trt.serving import Scheduler
from gear_trt.spec import CompressionConfig
from gear_trt.tensorrt.library import Flavour, TensorRT, import_tensorrt
from tests.export.tensorrt import plugin_library
from tests.graphs import ToyModel
from tests.plugins.checks import nmse
from tests.runtime import fake_tensorrt
from tests.runtime.device import HostQueue
from tests.runtime.folders import write_engine

TEXT = np.random.default_rng(0).integers(0, 256, 150)
TRT = TensorRT(Flavour.TENSORRT, fake_tensorrt, fake_tensorrt.__version__)


def refusal(code, call, *args, **kwargs):
    with pytest.raises(GearError) as caught:
        call(*args, **kwargs)
    assert caught.value.code is code
    assert "\n" not in caught.value.message
    return caught.value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An engine folder with an engine for the stand-in; tests do not change it.

    Its cache is lossless: how tokens are batched must not matter.
    """
    toy = ToyModel(config=CompressionConfig.preset("exact"))
    folder = write_engine(tmp_path_factory.mktemp("tensorrt") / "engine", toy)
    model = (folder / MODEL_FILE).read_bytes()
    (folder / ENGINE_FILE).write_bytes(model)
    facts = TensorRTFacts(
        flavour=Flavour.TENSORRT,
        version=fake_tensorrt.__version__,
        graph_sha256=hashlib.sha256(model).hexdigest(),
        compute_capabilities=("8.0", "9.0"),
        plugin="libgear_trt_plugins.so",
        limits=EngineLimits(max_batch=4, max_new_tokens=48, max_pages=8, num_pages=24, slots=8),
    )
    Manifest.read(folder).model_copy(update={"tensorrt": facts}).write(folder)
    return folder


@pytest.fixture
def machine(monkeypatch):
    """A machine that has everything: GPU, TensorRT, plugin library, PyTorch with CUDA."""
    monkeypatch.setattr(driver, "find_gpus", lambda: [Gpu("Imaginary B1", (9, 0), 80 * 10**9)])
    monkeypatch.setattr(choice, "count_gpus", lambda: 1)
    monkeypatch.setattr(check_module, "import_tensorrt", lambda flavour: TRT)
    monkeypatch.setattr(plugins, "build_info", dict)
    monkeypatch.setattr(plugins, "load", lambda registry: registry.load_library("the plugins"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def fresh_library():
    """The plugin library is looked for anew, in the test and after it."""
    plugins.plugin._library.cache_clear()
    yield
    plugins.plugin._library.cache_clear()


def open_backend(folder, raise_faults=lambda: None):
    manifest = Manifest.read(folder)
    loaded = load(EngineFile(folder / ENGINE_FILE, TRT))
    vocab_size = manifest.model.vocab_size
    return TensorRTBackend(loaded, HostQueue(), vocab_size=vocab_size, raise_faults=raise_faults)


def open_engine(folder, *, batch=1, **options):
    backend = open_backend(folder, **options)
    model = Model(folder, Manifest.read(folder), backend)
    return backend, Engine(model, batch=batch, max_tokens=200)


# --- Steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_steps_give_what_the_cpu_engine_gives(folder, machine, batch):
    rng = np.random.default_rng(batch)
    backend, engine = open_engine(folder, batch=batch)
    with gear_trt.load(folder, batch=batch, threads=1, backend="onnxruntime") as reference:
        for lengths in (rng.integers(1, 90, batch), *[np.ones(batch, int)] * 5):
            rows = [rng.integers(0, 256, length) for length in lengths]
            np.testing.assert_allclose(engine.step(rows), reference.step(rows), atol=1e-3)
    prefill, decode = backend._engine.contexts
    assert (prefill.profile, decode.profile) == (0, 1)
    assert {tokens for _, tokens in decode.runs} == {1}
    assert max(rows for rows, _ in prefill.runs) <= 2
    assert decode.scratch == prefill.scratch


def test_siblings_share_the_engine_and_nothing_else(folder, machine):
    backend, engine = open_engine(folder)
    sibling = engine.sibling(max_tokens=100)
    with gear_trt.load(folder, threads=1, backend="onnxruntime") as reference:
        want = reference.step([TEXT[:70]])
        for one in (engine, sibling):
            np.testing.assert_allclose(one.step([TEXT[:70]]), want, atol=1e-3)
    contexts = backend._engine.contexts
    assert len(contexts) == 4
    pools = {context.addresses["page_pool.0"] for context in contexts}
    assert len(pools) == 2, "one for each cache"


def test_generation_runs_on_it(folder, machine):
    _, engine = open_engine(folder)
    with gear_trt.load(folder, threads=1, max_tokens=200, backend="onnxruntime") as reference:
        want = reference.generate("Hello", max_new_tokens=12).token_ids
    assert engine.generate("Hello", max_new_tokens=12).token_ids == want


def test_what_the_kernels_met_is_told(folder, machine):
    def raise_faults():
        raise ValueError("layer 1, KV head 0, token 2 of sequence 0: key is not finite")

    _, engine = open_engine(folder, raise_faults=raise_faults)
    error = refusal(ErrorCode.NON_FINITE_ACTIVATION, engine.step, [[1, 2, 3]])
    assert "layer 1" in error.message


@pytest.mark.parametrize(
    ("batch", "max_tokens", "text"),
    [(9, 10, "residual_buffer.0"), (8, 300, "page_pool.0"), (1, 400, None)],
)
def test_a_cache_larger_than_the_engine_is_refused(folder, machine, batch, max_tokens, text):
    model = Model(folder, Manifest.read(folder), open_backend(folder))
    if text is None:
        Engine(model, batch=batch, max_tokens=max_tokens)
        return
    error = refusal(ErrorCode.BAD_REQUEST, Engine, model, batch=batch, max_tokens=max_tokens)
    assert text in error.message


# --- Serving --------------------------------------------------------------------------------------


def open_scheduler(folder, **sizes):
    backend = open_backend(folder)
    model = Model(folder, Manifest.read(folder), backend)
    return backend, Scheduler(model, **{"max_cache_bytes": 64 << 20, **sizes})


def ask(scheduler):
    """Answers to prompts that share their beginnings, more than one step of the engine takes."""
    options = GenerationOptions(max_new_tokens=10, eos_token_id=())
    prompts = [[*TEXT[:100].tolist(), *TEXT[end : end + 9].tolist()] for end in range(20)]
    tickets = [scheduler.submit(prompt, options) for prompt in prompts]
    answers = [[event.token for event in ticket] for ticket in tickets]
    scheduler.check()
    assert scheduler.stats().cache_bytes_used == 0
    return answers


def test_a_scheduler_keeps_to_what_the_engine_takes(folder, machine, caplog):
    with Scheduler(folder, max_cache_bytes=64 << 20, threads=1, backend="onnxruntime") as reference:
        want = ask(reference)
    backend, scheduler = open_scheduler(folder)
    with scheduler:
        assert ask(scheduler) == want
        assert scheduler._cache.free_slots == 8
        assert scheduler._cache.allocator.num_pages == 24
        assert scheduler.stats().shared_tokens > 0
    assert "takes 8 sequences at the same time, not 64" in caplog.text
    assert "takes 24 pages, not " in caplog.text
    assert backend._queue.replays > backend._queue.captures > 0


def test_a_scheduler_that_asks_for_less_hears_nothing(folder, machine, caplog):
    _, scheduler = open_scheduler(folder, max_cache_bytes=1 << 20, max_batch=4)
    with scheduler:
        assert scheduler._cache.free_slots == 4
    assert not caplog.text


def test_the_engine_bounds_the_tokens_of_a_sequence(folder, machine, monkeypatch):
    monkeypatch.setattr(fake_tensorrt.Engine, "max_pages", 3)
    _, scheduler = open_scheduler(folder)
    with scheduler:
        assert scheduler.max_tokens == 4 * 64 - 1
        options = GenerationOptions(max_new_tokens=9, eos_token_id=())
        events = list(scheduler.submit(TEXT[:1].tolist() * 252, options))
        assert len(events) == 4
        error = refusal(ErrorCode.CONTEXT_EXCEEDED, scheduler.submit, [1] * 256)
        assert "this server takes 255" in error.message


# --- Loading --------------------------------------------------------------------------------------


def test_a_damaged_engine_is_told_with_tensorrts_first_words(folder, machine, tmp_path):
    file = tmp_path / "damaged.engine"
    file.write_bytes(b"damaged")
    error = refusal(
        ErrorCode.DAMAGED_ENGINE,
        load,
        EngineFile(file, TRT),
    )
    assert "INVALID_PROTOBUF" in error.message
    assert "deserialization failed" not in error.message


def test_the_real_tensorrt_rtx_refuses_what_is_no_engine(folder, tmp_path, monkeypatch):
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    monkeypatch.setattr(plugins, "load", lambda registry: None)
    file = tmp_path / "damaged.engine"
    file.write_bytes(b"damaged" * 100)
    found = TensorRT(Flavour.RTX, trt, trt.__version__)
    error = refusal(ErrorCode.DAMAGED_ENGINE, load, EngineFile(file, found))
    assert "Serialization" in error.message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_real_engine_passes_every_check_and_lacks_only_the_gpu(
    tmp_path, fresh_library, monkeypatch
):
    monkeypatch.setenv(plugins.plugin.LIBRARY_VARIABLE, str(plugin_library()))
    folder = write_engine(tmp_path / "engine", tokenizer=False)
    options = TensorRTOptions(flavour=Flavour.RTX, compute_capabilities=("8.6",), max_batch=2)
    build_engine(folder, options)
    monkeypatch.setattr(driver, "find_gpus", lambda: [Gpu("Imaginary A1", (8, 6), 24 * 10**9)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    file = check(folder, Manifest.read(folder))
    assert file.trt.flavour is Flavour.RTX
    assert "CUDA" in refusal(ErrorCode.DAMAGED_ENGINE, load, file).message


@pytest.mark.parametrize("name", ["tensorrt_rtx_bindings", "tensorrt_lean_bindings"])
def test_the_real_modules_have_every_name_that_the_stand_in_has(name):
    trt = pytest.importorskip(name)
    pairs = (
        (trt.Runtime, fake_tensorrt.Runtime),
        (trt.ICudaEngine, fake_tensorrt.Engine),
        (trt.IExecutionContext, fake_tensorrt.Context),
        (trt.ExecutionContextAllocationStrategy, fake_tensorrt.ExecutionContextAllocationStrategy),
        (trt.ILogger.Severity, fake_tensorrt.Severity),
    )
    own = {"largest", "max_pages", "max_pool_pages", "max_slots"}
    for real, fake in pairs:
        names = {each for each in vars(fake) if not each.startswith("_")} - own
        assert names <= set(dir(real)), real


# --- Every reason against an engine ---------------------------------------------------------------


def change(folder, **changes):
    manifest = Manifest.read(folder)
    facts = manifest.tensorrt.model_copy(update=changes)
    return manifest.model_copy(update={"tensorrt": facts})


def test_nothing_speaks_against_it(folder, machine):
    file = check(folder, Manifest.read(folder))
    assert file.path == folder / ENGINE_FILE
    assert file.trt is TRT
    assert choose(folder, Manifest.read(folder)) is BackendName.TENSORRT


@pytest.mark.parametrize(
    ("changes", "code", "status", "text"),
    [
        ({"graph_sha256": "0123"}, ErrorCode.STALE_ENGINE, ExitStatus.FAILED, "another model.onnx"),
        ({"plugin": None}, ErrorCode.BAD_REQUEST, ExitStatus.FAILED, "plugin library inside"),
        ({"version_compatible": True}, ErrorCode.BAD_REQUEST, ExitStatus.FAILED, "runtime inside"),
        (
            {"compute_capabilities": ("8.9", "12.0")},
            ErrorCode.WRONG_GPU,
            ExitStatus.ENVIRONMENT,
            "compute capability 8.9, 12.0; Imaginary B1 has 9.0",
        ),
        (
            {"version": "11.3.0.99"},
            ErrorCode.UNSUPPORTED_VERSION,
            ExitStatus.ENVIRONMENT,
            "built with tensorrt 11.3.0.99, here is version 11.4.0.106",
        ),
    ],
)
def test_what_the_manifest_says_must_fit(folder, machine, changes, code, status, text):
    error = refusal(code, check, folder, change(folder, **changes))
    assert code.exit_status is status
    assert text in error.message


def test_builds_of_one_version_are_one(folder, machine):
    check(folder, change(folder, version="11.4.0.99"))


def test_a_manifest_that_names_no_tensorrt_is_damaged(folder, tmp_path):
    text = (folder / MANIFEST_FILE).read_text().replace('"flavour": "tensorrt"', '"flavour": "x"')
    (tmp_path / MANIFEST_FILE).write_text(text)
    error = refusal(ErrorCode.DAMAGED_ENGINE, Manifest.read, tmp_path)
    assert "tensorrt.flavour" in str(error.detail)


def test_no_engine(folder, machine):
    manifest = Manifest.read(folder).model_copy(update={"tensorrt": None})
    error = refusal(ErrorCode.MISSING_FILE, check, folder, manifest)
    assert "holds no TensorRT engine" in error.message


def test_no_gpu(folder, machine, monkeypatch):
    monkeypatch.setattr(driver, "find_gpus", list)
    error = refusal(ErrorCode.NO_GPU, check, folder, Manifest.read(folder))
    assert "--backend onnxruntime" in error.hint


def test_no_tensorrt(folder, machine, monkeypatch):
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed")
    monkeypatch.setattr(check_module, "import_tensorrt", import_tensorrt)
    error = refusal(ErrorCode.MISSING_DEPENDENCY, check, folder, Manifest.read(folder))
    assert error.message == "tensorrt is not installed"


def test_an_engine_that_is_gone(folder, machine, tmp_path):
    error = refusal(ErrorCode.MISSING_FILE, check, tmp_path, Manifest.read(folder))
    assert error.message.endswith("has no model.engine")


def test_compatible_engines_run_on_every_gpu_from_ampere_on(folder, machine, monkeypatch):
    manifest = change(folder, compute_capabilities=("8.6",), hardware_compatible=True)
    check(folder, manifest)
    monkeypatch.setattr(driver, "find_gpus", lambda: [Gpu("Imaginary T1", (7, 5), 16 * 10**9)])
    refusal(ErrorCode.WRONG_GPU, check, folder, manifest)


def test_no_plugin_library(folder, machine, fresh_library, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(driver, "find_gpus", lambda: [Gpu("Imaginary B1", (9, 0), 80 * 10**9)])
    monkeypatch.setattr(check_module, "import_tensorrt", lambda flavour: TRT)
    monkeypatch.setenv(plugins.plugin.LIBRARY_VARIABLE, "/no/such/libgear_trt_plugins.so")
    error = refusal(ErrorCode.MISSING_LIBRARY, check, folder, Manifest.read(folder))
    assert "/no/such/libgear_trt_plugins.so" in error.message


def test_pytorch_without_cuda(folder, machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = refusal(ErrorCode.MISSING_DEPENDENCY, check, folder, Manifest.read(folder))
    assert "PyTorch" in error.message


# --- The choice -----------------------------------------------------------------------------------


@pytest.fixture
def gpu_onnxruntime(monkeypatch):
    monkeypatch.setattr(choice, "_check_onnxruntime_cuda", lambda: None)


def test_an_engine_that_does_not_fit_is_passed_over_with_its_reason(
    folder, machine, gpu_onnxruntime, caplog
):
    manifest = change(folder, compute_capabilities=("8.9",))
    with caplog.at_level(logging.WARNING):
        assert choose(folder, manifest) is BackendName.ONNXRUNTIME_CUDA
    assert "tensorrt is not used: the engine is for compute capability 8.9" in caplog.text


def test_a_folder_without_an_engine_runs_on_onnxruntimes_cuda(
    folder, machine, gpu_onnxruntime, caplog
):
    manifest = Manifest.read(folder).model_copy(update={"tensorrt": None})
    assert choose(folder, manifest) is BackendName.ONNXRUNTIME_CUDA
    assert not caplog.text


def test_a_gpu_that_cannot_be_used_is_passed_over_with_the_reason(folder, machine, caplog):
    manifest = Manifest.read(folder).model_copy(update={"tensorrt": None})
    if requirements.CUDA_PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has a CUDA provider")
    assert choose(folder, manifest) is BackendName.ONNXRUNTIME
    assert "onnxruntime-cuda is not used: the installed onnxruntime has no" in caplog.text


def test_without_a_gpu_nothing_is_said(folder, monkeypatch, caplog):
    monkeypatch.setattr(choice, "count_gpus", lambda: 0)
    assert choose(folder, Manifest.read(folder)) is BackendName.ONNXRUNTIME
    assert not caplog.text


def test_unknown_backend(folder):
    error = refusal(ErrorCode.BAD_REQUEST, gear_trt.load, folder, backend="cuda")
    assert error.hint.endswith("auto, tensorrt, onnxruntime-cuda, onnxruntime")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda"])
def test_a_gpu_backend_by_name_without_a_gpu(folder, backend):
    refusal(ErrorCode.NO_GPU, gear_trt.load, folder, backend=backend)


# --- A real GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("flavour", Flavour)
def test_engines_on_a_gpu_give_what_the_cpu_gives(tmp_path, flavour):
    try:
        import_tensorrt(flavour)
    except GearError as error:
        pytest.skip(error.message)
    toy = ToyModel(config=CompressionConfig.preset("fp16"), dtype="float16")
    folder = write_engine(tmp_path / "engine", toy)
    targets = ("current",) if flavour is Flavour.RTX else ()
    build_engine(folder, TensorRTOptions(flavour=flavour, compute_capabilities=targets))
    rng = np.random.default_rng(0)
    steps = [rng.integers(1, 90, 3), *[np.ones(3, int)] * 6, rng.integers(0, 3, 3)]
    with (
        gear_trt.load(folder, batch=3, threads=1, backend="onnxruntime") as reference,
        gear_trt.load(folder, batch=3, backend="tensorrt") as engine,
    ):
        for lengths in steps:
            rows = [rng.integers(0, 256, length) for length in lengths]
            got, want = (np.nan_to_num(one.step(rows)) for one in (engine, reference))
            assert nmse(got, want) < 1e-4
