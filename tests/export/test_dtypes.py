"""Weights and activations of every type: routing with a lossless cache leaves the logits alone."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

import gear_trt
from gear_trt.cli.export import app
from gear_trt.errors import ErrorCode, ExitStatus, GearError
from gear_trt.export import export_model
from gear_trt.runtime.manifest import MODEL_FILE
from gear_trt.spec import DOMAIN, CompressionConfig
from tests.export import decoders
from tests.export import text_graphs as text
from tests.export.conftest import EXACT

pytestmark = pytest.mark.usefixtures("needs_library")

HALF, BRAIN, FLOAT = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT
CONFIG = CompressionConfig.preset("k4v4")
NAMES = {HALF: "float16", BRAIN: "bfloat16"}


@pytest.fixture(scope="module")
def genai(checkpoint, tmp_path_factory):
    """The tiny Llama as the genai builder writes it for a provider, made once each."""
    folder, made = tmp_path_factory.mktemp("genai"), {}

    def model(precision, provider):
        key = f"{precision}-{provider}"
        if key not in made:
            made[key] = decoders.save_genai(
                checkpoint, folder / key, precision=precision, provider=provider
            )
        return made[key]

    return model


def original_logits(path, tokens):
    """Run a model with an empty past."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    known = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape).copy(),
    }
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    feeds = {
        item.name: known[item.name]
        if item.name in known
        else np.zeros((len(tokens), item.shape[1], 0, text.HEAD_DIM), types[item.type])
        for item in session.get_inputs()
    }
    return session.run(["logits"], feeds)[0]


def routed_logits(path, tokens, folder):
    export_model(path, folder / "engine", config=EXACT, max_context=text.CONTEXT)
    with gear_trt.load(folder / "engine", batch=len(tokens), threads=1) as engine:
        parts = np.split(tokens, [20, 21], axis=1)
        return np.concatenate([engine.step(part, all_logits=True) for part in parts], axis=1)


def operators(path):
    model = onnx.load(path, load_external_data=False)
    return [node.op_type for node in model.graph.node]


def types_of(path):
    model = onnx.load(path, load_external_data=False)
    return {item.name: item.data_type for item in model.graph.initializer}


@pytest.fixture
def short(tokens):
    return tokens[:, :40]


@pytest.fixture
def letters():
    """Tokens of the models that are written as text."""
    return np.random.default_rng(0).integers(0, text.WIDTH, (2, 40))


def test_float16_written_out(tmp_path, letters):
    path = tmp_path / "model.onnx"
    onnx.save(text.retyped(text.written_out(), FLOAT, HALF), path)
    expected, actual = original_logits(path, letters), routed_logits(path, letters, tmp_path)
    assert expected.dtype == np.float16
    np.testing.assert_allclose(actual, expected, atol=2e-2)


def test_float16_group_query_attention(genai, tmp_path, short):
    path = genai("fp16", "cuda")
    expected, actual = original_logits(path, short), routed_logits(path, short, tmp_path)
    np.testing.assert_allclose(actual, expected, atol=2e-2)
    assert types_of(tmp_path / "engine" / MODEL_FILE)["lm_head.MatMul.weight"] == HALF


def test_a_float16_checkpoint_keeps_its_type(network, tmp_path, short):
    folder = decoders.save_checkpoint(decoders.llama().half(), tmp_path / "half")
    actual = routed_logits(folder, short, tmp_path)
    assert HALF in types_of(tmp_path / "engine" / MODEL_FILE).values()
    np.testing.assert_allclose(actual, original_of(network, short), atol=5e-2)


def test_a_bfloat16_checkpoint_computes_in_float32(tmp_path, short):
    """bfloat16 is what most checkpoints come in; every one of its values is a float32."""
    folder = decoders.save_checkpoint(decoders.llama().bfloat16(), tmp_path / "half")
    wide = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    actual = routed_logits(folder, short, tmp_path)
    assert BRAIN not in types_of(tmp_path / "engine" / MODEL_FILE).values()
    np.testing.assert_allclose(actual, original_of(wide, short), atol=1e-4)


def test_a_checkpoint_in_bfloat16_where_that_is_asked_for(tmp_path, short):
    """As GPUs run it; here with float32 in its place, which holds all of its weights."""
    folder = decoders.save_checkpoint(decoders.llama().bfloat16(), tmp_path / "half")
    wide = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    export_model(
        folder, tmp_path / "engine", config=EXACT, max_context=text.CONTEXT, dtype="bfloat16"
    )
    path = tmp_path / "engine" / MODEL_FILE
    assert activation_types(path) == {BRAIN}
    assert BRAIN in types_of(path).values()
    onnx.save(text.retyped(onnx.load(path), BRAIN, FLOAT), path)
    with gear_trt.load(tmp_path / "engine", batch=len(short), threads=1) as engine:
        actual = engine.step(short, all_logits=True)
    np.testing.assert_allclose(actual, original_of(wide, short), atol=1e-2)


def test_a_checkpoint_in_the_type_that_is_asked_for(checkpoint, network, tmp_path, short):
    export_model(
        checkpoint, tmp_path / "engine", config=EXACT, max_context=text.CONTEXT, dtype="float16"
    )
    assert HALF in types_of(tmp_path / "engine" / MODEL_FILE).values()
    with gear_trt.load(tmp_path / "engine", batch=len(short), threads=1) as engine:
        actual = engine.step(short, all_logits=True)
    np.testing.assert_allclose(actual, original_of(network, short), atol=5e-2)


def test_weights_that_float16_cannot_hold(tmp_path):
    large = decoders.llama()
    large.lm_head.weight.data[3, 5] = 1e6
    folder = decoders.save_checkpoint(large, tmp_path / "large")
    arguments = [str(folder), "-o", str(tmp_path / "engine"), "--dtype", "float16"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == ErrorCode.NON_FINITE_WEIGHTS.exit_status
    assert "lm_head" in result.stderr


def test_onnx_files_keep_their_type(tmp_path):
    onnx.save(text.written_out(), tmp_path / "model.onnx")
    with pytest.raises(GearError, match="keeps the types of its tensors") as caught:
        export_model(tmp_path / "model.onnx", tmp_path / "out", config=EXACT, dtype="float16")
    assert caught.value.code is ErrorCode.BAD_CONFIG


def original_of(network, tokens):
    with torch.no_grad():
        return network(torch.from_numpy(tokens)).logits.numpy()


def test_bfloat16_weights_that_the_graph_widens(tmp_path, letters):
    """The one bfloat16 that ONNX Runtime computes with on CPUs."""
    model = text.written_out()
    for name in ("query_weight", "output_weight"):
        tensor = next(item for item in model.graph.initializer if item.name == name)
        narrow = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
        tensor.CopyFrom(numpy_helper.from_array(narrow, f"{name}.narrow"))
        model.graph.node.insert(0, helper.make_node("Cast", [f"{name}.narrow"], [name], to=FLOAT))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    expected, actual = original_logits(path, letters), routed_logits(path, letters, tmp_path)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert types_of(tmp_path / "engine" / MODEL_FILE)["query_weight.narrow"] == BRAIN


@pytest.fixture(params=["written out", "GroupQueryAttention"])
def bfloat16_model(request, genai, tmp_path):
    if request.param == "GroupQueryAttention":
        return genai("bf16", "cuda")
    path = tmp_path / "model.onnx"
    onnx.save(text.retyped(text.written_out(), FLOAT, BRAIN), path)
    return path


def activation_types(path):
    """Types of query, key, value and output of all GearAttention nodes of a graph."""
    model = onnx.load(path, load_external_data=False)
    types = {item.name: item.type.tensor_type.elem_type for item in model.graph.value_info}
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    return {types[name] for node in nodes for name in (*node.input[:3], node.output[0])}


def test_the_op_takes_bfloat16_activations(bfloat16_model, tmp_path, letters):
    """No CPU runs either model, so both are run with float32 in the place of bfloat16."""
    export_model(bfloat16_model, tmp_path / "engine", config=EXACT, max_context=text.CONTEXT)
    engine = tmp_path / "engine" / MODEL_FILE
    assert activation_types(engine) == {BRAIN}
    assert operators(engine).count("Cast") <= operators(bfloat16_model).count("Cast")
    onnx.save(text.retyped(onnx.load(engine), BRAIN, FLOAT), engine)
    onnx.save(text.retyped(onnx.load(bfloat16_model), BRAIN, FLOAT), tmp_path / "wide.onnx")
    expected = original_logits(tmp_path / "wide.onnx", letters)
    with gear_trt.load(tmp_path / "engine", batch=2, threads=1) as loaded:
        actual = loaded.step(letters, all_logits=True)
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_keys_of_bfloat16_models_are_measured_in_float32(bfloat16_model, tmp_path):
    onnx.save(text.retyped(onnx.load(bfloat16_model), BRAIN, FLOAT), tmp_path / "wide.onnx")
    found = {}
    for name, path in (("narrow", bfloat16_model), ("wide", tmp_path / "wide.onnx")):
        export_model(path, tmp_path / name, config=CONFIG, max_context=text.CONTEXT)
        weights = onnx.load(tmp_path / name / MODEL_FILE).graph.initializer
        found[name] = [numpy_helper.to_array(item) for item in weights if "_scales." in item.name]
    assert found["wide"]
    assert all(np.ptp(scales) > 0.05 for scales in found["wide"])
    for narrow, wide in zip(found["narrow"], found["wide"], strict=True):
        assert narrow.dtype == ml_dtypes.bfloat16
        # Rounding costs 2^-8 at most, twice where the inverse of a rounded scale is rounded.
        np.testing.assert_allclose(narrow.astype(np.float32), wide, rtol=2**-7)


def test_bfloat16_activations_are_refused_by_cpus(bfloat16_model, tmp_path):
    arguments = [bfloat16_model, "-o", tmp_path / "engine", "--max-context", text.CONTEXT]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == ExitStatus.OK
    assert "activations are bfloat16, with which ONNX Runtime computes on GPUs" in result.stderr
    with pytest.raises(GearError) as caught:
        gear_trt.load(tmp_path / "engine", threads=1)
    assert caught.value.code is ErrorCode.UNSUPPORTED_MODEL
    assert caught.value.message.startswith("ONNX Runtime has no CPU kernel for node")
    assert "bfloat16" in caught.value.hint


def assert_equal_but_for_rounding(actual, expected):
    """Kernels round activations to int8: what differs in the last bit may land a step apart."""
    step = np.abs(expected).max() / 127
    difference = np.abs(actual - expected)
    assert difference.max() <= 2 * step
    assert np.median(difference) <= 1e-4


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_weights_in_matmul_nbits(genai, tmp_path, short, precision):
    path = genai(precision, "cpu")
    expected, actual = original_logits(path, short), routed_logits(path, short, tmp_path)
    assert_equal_but_for_rounding(actual, expected)
    before = operators(path).count("MatMulNBits")
    assert operators(tmp_path / "engine" / MODEL_FILE).count("MatMulNBits") == before > 0


def test_weights_in_blocks_of_dequantize_linear(tmp_path, letters):
    quantizer = MatMulNBitsQuantizer(
        text.written_out(), bits=4, block_size=32, quant_format=QuantFormat.QDQ
    )
    quantizer.process()
    path = tmp_path / "model.onnx"
    quantizer.model.save_model_to_file(str(path))
    expected, actual = original_logits(path, letters), routed_logits(path, letters, tmp_path)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    kept = operators(tmp_path / "engine" / MODEL_FILE)
    assert kept.count("DequantizeLinear") == operators(path).count("DequantizeLinear") > 0


class Calibration(CalibrationDataReader):
    def __init__(self, tokens):
        empty = np.zeros((len(tokens), text.KV_HEADS, 0, text.HEAD_DIM), np.float32)
        mask = np.ones_like(tokens)
        feeds = {"input_ids": tokens, "attention_mask": mask, "old_keys": empty}
        self.items = iter([{**feeds, "old_values": empty}])

    def get_next(self):
        return next(self.items, None)


def quantized_int8(path, tokens, projections_only):
    """QDQ pairs round the MatMuls, as onnxruntime.quantization writes them."""
    model = text.written_out(('"" : 23', '"" : 20'))  # the quantizer's 23 does not load
    projections = []
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
        if node.op_type == "MatMul" and node.input[1].endswith("weight"):
            projections.append(node.name)
    onnx.save(model, path.with_name("float.onnx"))
    quantize_static(
        path.with_name("float.onnx"),
        path,
        Calibration(tokens),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=projections if projections_only else None,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    return path


def test_weights_and_activations_in_qdq_int8(tmp_path, letters):
    path = quantized_int8(tmp_path / "model.onnx", letters, projections_only=True)
    expected, actual = original_logits(path, letters), routed_logits(path, letters, tmp_path)
    kept = operators(tmp_path / "engine" / MODEL_FILE)
    for name in ("QuantizeLinear", "DequantizeLinear"):
        assert kept.count(name) == operators(path).count(name) > 0
    assert_equal_but_for_rounding(actual, expected)


def test_attention_that_is_quantized_itself_is_refused(tmp_path, letters):
    path = quantized_int8(tmp_path / "model.onnx", letters, projections_only=False)
    with pytest.raises(GearError) as caught:
        export_model(path, tmp_path / "engine", config=EXACT, max_context=text.CONTEXT)
    assert caught.value.code is ErrorCode.NO_KV_CACHE
    assert "DequantizeLinear" in caught.value.detail
