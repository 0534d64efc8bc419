"""`Attention` of ONNX and `GroupQueryAttention` of ONNX Runtime, with each of their features."""

import numpy as np
import onnx
import pytest

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.export import export_model
from gear_trt.export.passes.sites import KvSite, NearMiss
from tests.export import text_graphs as text
from tests.export.conftest import EXACT
from tests.export.test_written_out import find, only

LENGTHS = """
  mask_sum = ReduceSum<keepdims=0>(attention_mask, last_axis)
  last_index = Sub(mask_sum, one)
  lengths = Cast<to=6>(last_index)
  mask_shape = Shape<start=1>(attention_mask)
  total_long = Squeeze(mask_shape)
  total_tokens = Cast<to=6>(total_long)
"""
GROWN = "new_keys, new_values"
OLD = "old_keys, old_values"


def attention(attributes, inputs="", *, before=""):
    """ONNX's op on [B, N, S, D]."""
    nodes = f"heads, {GROWN} = Attention<{attributes}>(query, key, value, {inputs})\n"
    return text.with_node(text.HEADS_FIRST + before + nodes + text.HEADS_LAST)


def flat_attention(attributes):
    """ONNX's op on [B, S, N · D]."""
    heads = "q_num_heads=4, kv_num_heads=2"
    return text.with_node(
        f"mixed, {GROWN} = Attention<{heads}, {attributes}>"
        f"(flat_query, flat_key, flat_value, , {OLD})\n"
    )


def grouped(attributes="", inputs="", *, old=OLD, heads=(4, 2)):
    """ONNX Runtime's op on [B, S, N · D]."""
    return text.with_node(
        f"{LENGTHS}  mixed, {GROWN} = com.microsoft.GroupQueryAttention"
        f"<num_heads={heads[0]}, kv_num_heads={heads[1]}{attributes}>"
        f"(flat_query, flat_key, flat_value, {old}, lengths, total_tokens{inputs})\n",
        kv_heads=heads[1],
    )


ROTATED = ", cos_table, sin_table"
SUPPORTED = {
    "attention": attention("is_causal=1", f", {OLD}"),
    "attention-flat": flat_attention("is_causal=1, scale=0.3"),
    "attention-mask": attention("scale=0.3", f"seen_ST, {OLD}", before=text.WINDOW_OF_5),
    "attention-softcap": flat_attention("is_causal=1, softcap=2.0"),
    "grouped": grouped(),
    "grouped-scale": grouped(", scale=0.3"),
    "grouped-softcap": grouped(", softcap=2.0"),
    "grouped-window": grouped(", local_window_size=5"),
    "grouped-rotary": grouped(", do_rotary=1", ROTATED),
    "grouped-interleaved": grouped(", do_rotary=1, rotary_interleaved=1", ROTATED),
    "grouped-partial": grouped(", do_rotary=1", ROTATED, heads=(2, 1)),
}
EXPECTED = {
    "attention-mask": {"scale": 0.3, "sliding_window": 5},
    "attention-softcap": {"scale": 0.25, "softcap": 2.0},
    "grouped-window": {"scale": 0.25, "sliding_window": 5},
    "grouped-softcap": {"scale": 0.25, "softcap": 2.0},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_facts_come_from_attributes_and_masks(name):
    facts = vars(only(find(SUPPORTED[name]), KvSite).facts)
    assert {key: facts[key] for key in EXPECTED[name]} == pytest.approx(EXPECTED[name])


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_engine_computes_what_the_op_did(name, needs_library, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(SUPPORTED[name], path)
    export_model(path, tmp_path / "engine", config=EXACT, max_context=text.CONTEXT)
    token_ids = np.random.default_rng(1).integers(0, text.WIDTH, (2, 40))
    with gear_trt.load(tmp_path / "engine", batch=2, threads=1) as engine:
        steps = [engine.step(part, all_logits=True) for part in np.split(token_ids, [17, 18], 1)]
    expected_BSV = text.run_original(SUPPORTED[name], token_ids)
    np.testing.assert_allclose(np.concatenate(steps, 1), expected_BSV, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (attention("is_causal=0", f", {OLD}"), "it has no mask and is not causal"),
        (attention("is_causal=1"), "key comes from MatMul node"),
        (grouped(", smooth_softmax=1"), "attribute smooth_softmax=1 is not supported"),
        (grouped(', k_quant_type="PER_TENSOR"'), "attribute k_quant_type=PER_TENSOR"),
        (grouped("", ", , , , slopes"), "input attention_bias is not supported"),
        (grouped("", ", , , , , slopes"), "input head_sink (attention sinks) is not supported"),
        (grouped(", do_rotary=1"), "do_rotary=1 without cos_cache and sin_cache"),
        (grouped(old=", "), "exported without a KV cache"),
        (grouped(old="flat_key, old_values"), "past input is not a graph input but flat_key"),
    ],
)
def test_unsupported_features_are_named(model, reason):
    assert reason in only(find(model), NearMiss).reason


def test_a_longer_context_than_the_rotary_tables_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(SUPPORTED["grouped-rotary"], path)
    with pytest.raises(
        GearError, match="longer than the model's rotary tables or fixed caches: 64"
    ) as caught:
        export_model(path, tmp_path / "engine", config=EXACT, max_context=65)
    assert caught.value.code is ErrorCode.BAD_CONFIG


def test_rotary_tables_say_how_long_the_context_is(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(SUPPORTED["grouped-rotary"], path)
    report = export_model(path, tmp_path / "engine", config=EXACT)
    assert report.model.max_context == text.CONTEXT
