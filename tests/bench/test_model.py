"""Runs of the whole-model benchmark on a toy model."""

import numpy as np
import pytest

from gear_trt.bench import decoders, model
from gear_trt.bench.baseline import Fp32Engine
from gear_trt.bench.decoders import DecoderSpec
from gear_trt.bench.dependencies import is_installed
from gear_trt.bench.model import ModelPlan, run
from gear_trt.bench.worker import Worker
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.engine import load
from gear_trt.runtime.manifest import MODEL_FILE
from gear_trt.spec import CompressionConfig
from tests.graphs import ToyModel
from tests.runtime.folders import MAX_CONTEXT, write_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engine") / "toy", tokenizer=False)


def refused(asked):
    with pytest.raises(GearError) as caught:
        run(asked)
    return caught.value


def test_rows(engine):
    before = sorted(engine.iterdir())
    told = []
    result = run(ModelPlan(engine, [80, 200], tokens=10), lambda *what: told.append(what))
    assert [(row.context, row.candidate) for row in result.rows] == [
        (80, "gear k4v4"), (80, "ort-fp32"), (200, "gear k4v4"), (200, "ort-fp32"),
    ]  # fmt: skip
    assert not result.refusals
    for row in result.rows:
        assert row.tokens == 10
        assert row.rounds == 2
        assert 0 < row.seconds_min <= row.seconds
        assert row.decode_tokens_per_second == 1 / row.seconds
        assert row.peak_memory_bytes > 1 << 24
        assert row.baseline == "ort-fp32"
    gear, fp32 = result.rows[2:]
    assert fp32.speedup == 1
    assert fp32.cache_bytes == 200 * fp32.bytes_per_token == 200 * 2 * 2 * 2 * 32 * 4
    assert gear.cache == "k4v4"
    assert gear.cache_bytes < fp32.cache_bytes
    assert 0 < gear.compression_share < 1
    assert 0 < gear.prefill_compression_share < 1
    assert [stage for stage, *_ in told][-1] == "context 200"
    assert sorted(engine.iterdir()) == before, "nothing is written to the engine folder"


def test_baseline_computes_what_the_engine_does(tmp_path):
    toy = ToyModel(config=CompressionConfig.preset("exact"))
    folder = write_engine(tmp_path / "exact", toy, tokenizer=False)
    baseline = Fp32Engine.open(folder, capacity=100, threads=1)
    sibling = baseline.sibling(capacity=50)
    tokens = np.random.default_rng(0).integers(0, 256, 70)
    with load(folder, threads=1) as engine:
        want = engine.step([tokens], all_logits=True)[0]
        sibling.step(tokens[:3])  # a cache of its own
        np.testing.assert_allclose(baseline.step(tokens), want, atol=1e-3)
        np.testing.assert_allclose(baseline.step(tokens[:1])[0], engine.step([tokens[:1]])[0],
                                   atol=1e-3)  # fmt: skip
        baseline.reset()
        np.testing.assert_allclose(baseline.step(tokens), want, atol=1e-3)


@pytest.mark.parametrize("contexts", [[10], [MAX_CONTEXT + 1]])
def test_contexts_that_do_not_fit(engine, contexts):
    error = refused(ModelPlan(engine, contexts, tokens=10))
    assert error.code is ErrorCode.BAD_REQUEST
    assert str(MAX_CONTEXT) in error.hint


def test_too_few_tokens(engine):
    assert refused(ModelPlan(engine, [80], tokens=2)).code is ErrorCode.BAD_REQUEST


def test_missing_gguf_file(engine, tmp_path):
    error = refused(ModelPlan(engine, [80], tokens=10, gguf=tmp_path / "none.gguf"))
    assert error.code is ErrorCode.MISSING_FILE


def test_no_engine_folder(tmp_path):
    assert refused(ModelPlan(tmp_path, [80])).code is ErrorCode.MISSING_FILE


def test_damaged_engine(tmp_path):
    folder = write_engine(tmp_path / "engine", tokenizer=False)
    (folder / MODEL_FILE).write_bytes(b"not a model")
    assert refused(ModelPlan(folder, [80], tokens=10)).code is ErrorCode.DAMAGED_ENGINE


def test_llama_cpp_that_is_missing_is_left_out(engine, tmp_path):
    if is_installed("llama_cpp"):
        pytest.skip("llama-cpp-python is installed")
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    result = run(ModelPlan(engine, [80], tokens=10, gguf=gguf))
    assert {row.engine for row in result.rows} == {"gear", "onnxruntime"}
    assert set(result.refusals) == set(decoders.LLAMA_PEERS)
    assert all("pip install llama-cpp-python" in reason for reason in result.refusals.values())


def test_a_file_that_llama_cpp_cannot_load_is_left_out(engine, tmp_path):
    pytest.importorskip("llama_cpp")
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not a model")
    result = run(ModelPlan(engine, [80], tokens=10, gguf=gguf))
    assert all("cannot load" in reason for reason in result.refusals.values())


def test_a_killed_process_is_named(engine):
    with Worker(DecoderSpec("gear", engine, None, 100, 1)) as worker:
        worker._process.kill()
        with pytest.raises(GearError, match="memory"):
            worker.fill(10)


def test_processes_end_with_the_run(engine, monkeypatch):
    import psutil

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(model, "_measure", broken)
    with pytest.raises(RuntimeError, match="broken"):
        run(ModelPlan(engine, [80], tokens=10))
    assert not [
        child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())
    ]
