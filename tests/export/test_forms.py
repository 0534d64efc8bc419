"""The same model in every form becomes the same engine."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import gear_trt
from gear_trt.runtime.manifest import MODEL_FILE, Manifest
from gear_trt.spec import DOMAIN, GEAR_ATTENTION, layout_hash
from gear_trt.spec.ops import LAYOUT_HASH_KEY
from tests.export import decoders
from tests.export.conftest import EXACT, FORMS

SITE_FORMS = {
    "transformers": "transformers",
    "dynamo-18": "MatMul + Softmax",
    "dynamo-23": "Attention",
    "genai": "GroupQueryAttention",
}
REPLACED = {"Attention", "GroupQueryAttention", "Softmax", "UnroutedAttention"}

every_form = pytest.mark.parametrize("form", FORMS)


def load_graph(folder):
    return onnx.load(folder / MODEL_FILE, load_external_data=False)


def gear_nodes(model):
    return [node for node in model.graph.node if node.domain == DOMAIN]


def attributes(node):
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


@every_form
def test_every_layer_is_found_in_its_form(engines, form):
    report = json.loads((engines(form) / "report.json").read_text())
    assert report["schema"] == "gear.export/1"
    assert [site["form"] for site in report["sites"]] == [SITE_FORMS[form]] * decoders.LAYERS
    assert [site["layer"] for site in report["sites"]] == [0, 1]


@every_form
def test_one_node_stands_for_each_layer(engines, form):
    model = load_graph(engines(form))
    assert [node.op_type for node in gear_nodes(model)] == [GEAR_ATTENTION.name] * decoders.LAYERS
    assert not REPLACED & {node.op_type for node in model.graph.node}
    for layer, node in enumerate(gear_nodes(model)):
        found = attributes(node)
        assert set(found) == {item.name for item in GEAR_ATTENTION.attributes}
        assert found["layer"] == layer
        assert found["num_heads"] == decoders.HEADS
        assert found["num_kv_heads"] == decoders.KV_HEADS
        assert found["head_dim"] == decoders.HEAD_DIM
        assert found["scale"] == pytest.approx(decoders.HEAD_DIM**-0.5)
        assert {name: found[name] for name in EXACT.model_dump()} == EXACT.model_dump()


@every_form
def test_the_interface_is_the_runtime_s(engines, form):
    model = load_graph(engines(form))
    rows = ["slots", 2, 2, 64, 16]
    pool = ["num_pages", 2, 2048]
    assert described(model.graph.input) == {
        "input_ids": (TensorProto.INT64, ["B", "S"]),
        "past_lengths": (TensorProto.INT32, ["B"]),
        "new_lengths": (TensorProto.INT32, ["B"]),
        "slots": (TensorProto.INT32, ["B"]),
        "page_table": (TensorProto.INT32, ["B", "max_pages"]),
        "page_pool.0": (TensorProto.INT32, pool),
        "page_pool.1": (TensorProto.INT32, pool),
        "residual_buffer.0": (TensorProto.FLOAT, rows),
        "residual_buffer.1": (TensorProto.FLOAT, rows),
    }
    assert described(model.graph.output) == {
        "logits": (TensorProto.FLOAT, ["B", "S", decoders.VOCABULARY]),
        "page_pool_out.0": (TensorProto.INT32, pool),
        "page_pool_out.1": (TensorProto.INT32, pool),
        "residual_buffer_out.0": (TensorProto.FLOAT, rows),
        "residual_buffer_out.1": (TensorProto.FLOAT, rows),
    }
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata[LAYOUT_HASH_KEY] == layout_hash()


def described(values):
    return {value.name: (value.type.tensor_type.elem_type, axes(value)) for value in values}


def axes(value):
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


@every_form
def test_repeated_heads_masks_and_caches_are_gone(engines, form):
    operators = Counter(node.op_type for node in load_graph(engines(form)).graph.node)
    assert not {"Expand", "Where", "LessOrEqual", "ReduceSum", "GatherND"} & set(operators)
    if form != "dynamo-18":  # its rotation is written out, with heads first
        assert operators["Transpose"] == operators["Reshape"] == 0


@every_form
def test_the_manifest_has_the_facts_of_the_model(engines, form):
    manifest = Manifest.read(engines(form))
    assert manifest.model.vocab_size == decoders.VOCABULARY
    assert manifest.model.max_context == decoders.CONTEXT
    assert [layer.config for layer in manifest.layers] == [EXACT, EXACT]
    if not form.startswith("dynamo"):  # no config.json lies beside those
        assert manifest.model.architecture == "llama"
        assert manifest.model.eos_token_ids == (2,)
        assert manifest.model.pad_token_id == 0
        assert (engines(form) / "tokenizer.json").is_file()


@every_form
def test_prefill_and_decode_equal_transformers(engines, network, needs_library, tokens, form):
    expected_BSV = reference_logits(network, tokens)
    with gear_trt.load(engines(form), batch=2, max_tokens=200, threads=1) as engine:
        parts = np.split(tokens, [100, 143, 144, 145, 146], axis=1)
        steps = [engine.step(part, all_logits=True) for part in parts]
    np.testing.assert_allclose(np.concatenate(steps, 1), expected_BSV, atol=1e-4)


@every_form
def test_sequences_of_unequal_length_do_not_touch_each_other(
    engines, network, needs_library, tokens, form
):
    expected_BSV = reference_logits(network, tokens)
    first, second = (list(row) for row in tokens)
    with gear_trt.load(engines(form), batch=2, max_tokens=200, threads=1) as engine:
        ragged = engine.step([first[:90], second[:20]])
        again = engine.step([first[90:91], second[20:120]])
    np.testing.assert_allclose(ragged, [expected_BSV[0, 89], expected_BSV[1, 19]], atol=1e-4)
    np.testing.assert_allclose(again, [expected_BSV[0, 90], expected_BSV[1, 119]], atol=1e-4)


@every_form
def test_a_full_sequence_may_share_a_batch_with_a_long_prompt(engines, needs_library, tokens, form):
    context = decoders.CONTEXT
    with gear_trt.load(engines(form), batch=2, threads=1) as engine:
        engine.step([list(range(3, 100)) * 2 + list(range(3, 3 + context - 1 - 194)), []])
        logits = engine.step([[5], list(tokens[1])])
    assert np.isfinite(logits).all()


def reference_logits(network, tokens):
    with torch.no_grad():
        return network(torch.from_numpy(tokens)).logits.numpy()
