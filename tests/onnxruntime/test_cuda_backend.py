"""ONNX Runtime's CUDA backend: on the emulated GPU everywhere, on a real one where there is one."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.manifest import MODEL_FILE
from gear_trt.runtime.onnxruntime import open_session, session_options
from gear_trt.spec import DOMAIN, graph
from tests.cuda.build import CUDA_BUILD
from tests.cuda.conftest import emulated  # noqa: F401 - a fixture
from tests.onnxruntime.emulated import emulated_engine
from tests.plugins.checks import nmse
from tests.runtime.folders import with_infinite_keys, write_engine

TOLERANCE = 1e-4
"""CPU kernels round queries to bytes, those of GPUs to FP16."""
TEXT = np.random.default_rng(0).integers(0, 256, 150)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engine") / "k4v4")


def compare(engine, reference):
    """Steps of prompts, single tokens and idle rows, then all logits of a prompt."""
    for rows in ([TEXT[:90], TEXT[:5]], [[7], []], [[8], [9]], [TEXT[:3], TEXT[:70]]):
        got, want = engine.step(rows), reference.step(rows)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        assert nmse(np.nan_to_num(got), np.nan_to_num(want)) < TOLERANCE
    got, want = (one.step([TEXT[:9], TEXT[:9]], all_logits=True) for one in (engine, reference))
    assert nmse(got, want) < TOLERANCE


def test_steps_on_the_emulated_gpu_give_what_the_cpu_gives(folder, emulated):  # noqa: F811
    with gear_trt.load(folder, batch=2, threads=1, backend="onnxruntime") as reference:
        compare(emulated_engine(folder, batch=2), reference)


def with_bfloat16_attention(folder):
    """Write an engine folder whose GearAttention nodes and logits are in bfloat16, nothing else."""
    write_engine(folder)
    model = onnx.load(folder / MODEL_FILE)
    kept = list(model.graph.node)
    del model.graph.node[:]

    def cast(name, target, dtype):
        model.graph.node.append(helper.make_node("Cast", [name], [target], to=dtype))

    for node in kept:
        if node.domain != DOMAIN:
            model.graph.node.append(node)
            continue
        for index in range(3):
            cast(node.input[index], f"{node.input[index]}.narrow", TensorProto.BFLOAT16)
            node.input[index] += ".narrow"
        output = node.output[0]
        node.output[0] += ".narrow"
        model.graph.node.append(node)
        cast(node.output[0], output, TensorProto.FLOAT)
    for node in model.graph.node:
        node.output[:] = ["wide" if name == graph.LOGITS else name for name in node.output]
    cast("wide", graph.LOGITS, TensorProto.BFLOAT16)
    logits = next(value for value in model.graph.output if value.name == graph.LOGITS)
    logits.type.tensor_type.elem_type = TensorProto.BFLOAT16
    onnx.save(model, folder / MODEL_FILE)
    return folder


def test_attention_and_logits_in_bfloat16(folder, tmp_path, emulated):  # noqa: F811
    narrow = with_bfloat16_attention(tmp_path / "narrow")
    with gear_trt.load(folder, batch=2, threads=1, backend="onnxruntime") as reference:
        compare(emulated_engine(narrow, batch=2), reference)
    with pytest.raises(GearError) as caught:
        gear_trt.load(narrow, threads=1, backend="onnxruntime")
    assert caught.value.detail == "the graph has no output logits in float32 or float16"


def test_generation_and_siblings(folder, emulated):  # noqa: F811
    engine = emulated_engine(folder)
    with gear_trt.load(folder, threads=1, backend="onnxruntime") as reference:
        want = reference.generate("Hello there", max_new_tokens=8).token_ids
    assert engine.generate("Hello there", max_new_tokens=8).token_ids == want
    assert engine.sibling().generate("Hello there", max_new_tokens=8).token_ids == want


def test_what_the_kernels_met_ends_the_step(tmp_path, emulated):  # noqa: F811
    folder = with_infinite_keys(tmp_path / "engine")
    engine = emulated_engine(folder)
    with pytest.raises(GearError) as caught:
        engine.step([TEXT[:5]])
    assert caught.value.code is ErrorCode.NON_FINITE_ACTIVATION
    assert "layer 1" in caught.value.message
    assert engine.cache.lengths[0] == 0


def test_a_cuda_provider_that_does_not_start_is_told(folder):
    """ONNX Runtime goes on with its CPU provider, for which libgear_cuda has no kernel."""
    library = CUDA_BUILD / "cuda" / "libgear_cuda.so"
    if not library.is_file():
        pytest.skip("libgear_cuda.so was not built: run `make cuda`")
    with pytest.raises(GearError) as caught:
        open_session(folder, session_options(1, library), ["CPUExecutionProvider"])
    assert caught.value.code is ErrorCode.MISSING_DEPENDENCY
    assert "CUDA provider does not start" in caught.value.message


# --- A real GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_on_a_gpu_give_what_the_cpu_gives(folder):
    with (
        gear_trt.load(folder, batch=2, threads=1, backend="onnxruntime") as reference,
        gear_trt.load(folder, batch=2, backend="onnxruntime-cuda") as engine,
    ):
        compare(engine, reference)
        compare(engine.sibling(batch=2), reference.sibling(batch=2))
