"""Attention written out in steps: what is measured, what is refused, what it computes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import gear_trt
from gear_trt.export import export_model
from gear_trt.export.passes.find_kv import find_kv
from gear_trt.export.passes.normalize import normalize
from gear_trt.export.passes.sites import KvSite, NearMiss, SearchContext
from tests.export import text_graphs as text
from tests.export.conftest import EXACT

VARIANTS = {
    "causal": [],
    "window": [(text.CAUSAL, text.WINDOW_OF_5)],
    "softcap": [("scaled = Mul(products, scale)", text.SOFTCAPPED)],
    "where": [(text.MASKED, "scores = Where(seen_ST, scaled, hidden)\n")],
    "lowest": [("hidden)", "lowest)")],
    "guarded": [("heads = MatMul(weights, all_values)", text.GUARDED)],
    "scale-on-query": [
        ("MatMul(query, turned", "MatMul(smaller, turned"),
        ("turned_keys =", "smaller = Mul(scale, query)\n  turned_keys ="),
        ("scaled = Mul(products, scale)", "scaled = Identity(products)"),
    ],
}


def find(model):
    converted = ir.from_proto(model)
    normalize(converted)
    return find_kv(SearchContext(converted.graph, text.CONTEXT))


def only(found, kind):
    (item,) = found
    assert isinstance(item, kind), item
    return item


def build(name):
    model = text.written_out(*VARIANTS[name])
    if name == "lowest":
        lowest = np.array(np.finfo(np.float32).min)
        model.graph.initializer.append(onnx.numpy_helper.from_array(lowest, "lowest"))
    return model


@pytest.mark.parametrize(
    ("name", "scale", "softcap", "window"),
    [
        ("causal", 0.3, 0.0, 0),
        ("window", 0.3, 0.0, 5),
        ("softcap", 0.5 * 2.0, 2.0, 0),
        ("where", 0.3, 0.0, 0),
        ("lowest", 0.3, 0.0, 0),
        ("guarded", 0.3, 0.0, 0),
        ("scale-on-query", 0.3, 0.0, 0),
    ],
)
def test_scale_softcap_and_window_are_measured(name, scale, softcap, window):
    facts = only(find(build(name)), KvSite).facts
    assert (facts.num_heads, facts.num_kv_heads, facts.head_dim) == (4, 2, 16)
    assert facts.scale == pytest.approx(scale, rel=1e-5)
    assert facts.softcap == pytest.approx(softcap, rel=1e-5)
    assert facts.sliding_window == window


@pytest.mark.parametrize("name", VARIANTS)
def test_the_engine_computes_what_the_model_did(name, needs_library, tmp_path):
    model, path = build(name), tmp_path / "model.onnx"
    onnx.save(model, path)
    export_model(path, tmp_path / "engine", config=EXACT, max_context=text.CONTEXT)
    token_ids = np.random.default_rng(1).integers(0, text.WIDTH, (2, 40))
    with gear_trt.load(tmp_path / "engine", batch=2, threads=1) as engine:
        steps = [engine.step(part, all_logits=True) for part in np.split(token_ids, [17, 18], 1)]
    expected_BSV = text.run_original(model, token_ids)
    np.testing.assert_allclose(np.concatenate(steps, 1), expected_BSV, atol=1e-4)


BIAS = "bias_ST = Where(seen_ST, nothing, hidden)"
ALIBI = """distance_T = Cast<to=1>(key_T)
  alibi = Mul(slopes, distance_T)
  bias_ST = Where(seen_ST, alibi, hidden)"""
SQUARED = """squared = Mul(products, products)
  scaled = Mul(squared, scale)"""
SHUFFLED = """shuffled = Gather<axis=1>(all_values, head_order)
  heads = MatMul(weights, shuffled)"""
NEAR_MISSES = {
    "past input is not a graph input but key": (
        "Concat<axis=2>(old_keys, key)",
        "Concat<axis=2>(key, old_keys)",
    ),
    "key comes from MatMul node": (
        "new_keys = Concat<axis=2>(old_keys, key)",
        "new_keys = Identity(key)",
    ),
    "present output new_keys is not a graph output": (
        "float[batch, 2, total, 16] new_keys",
        "float[batch, 4, total, 16] all_keys",
    ),
    "its mask is not causal": (BIAS, "bias_ST = Where(seen_ST, hidden, nothing)"),
    "adds a bias to the scores (ALiBi": (BIAS, ALIBI),
    "value comes from Gather node": ("heads = MatMul(weights, all_values)", SHUFFLED),
    "does not compute causal attention": ("scaled = Mul(products, scale)", SQUARED),
}


@pytest.mark.parametrize("reason", NEAR_MISSES)
def test_near_misses_say_which_check_failed(reason):
    model = text.written_out(NEAR_MISSES[reason])
    assert reason in only(find(model), NearMiss).reason


def test_a_graph_without_a_mask_is_not_causal():
    model = text.written_out((text.MASKED, "scores = Identity(scaled)\n"))
    assert "its mask is not causal" in only(find(model), NearMiss).reason


def test_a_softmax_outside_of_attention_is_none():
    model = text.written_out(
        ("logits = MatMul(mixed, output_weight)",
         "routes = Softmax<axis=-1>(mixed)\n  gated = Mul(routes, mixed)\n"
         "  logits = MatMul(gated, output_weight)")
    )  # fmt: skip
    assert len(find(model)) == 1


def test_a_wrong_order_of_repeated_heads_is_caught_by_the_trial():
    tiled = text.written_out(
        ("Expand(grouped_keys, twice)", "Expand(grouped_keys, tile)"),
        ("Unsqueeze(new_keys, group_axis)", "Unsqueeze(new_keys, one_axis)"),
    )
    tiled.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, 1, 1, 1]), "tile"))
    tiled.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one_axis"))
    assert "does not compute causal attention" in only(find(tiled), NearMiss).reason
