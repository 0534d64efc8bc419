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


def packed():
    """ONNX Runtime's op on queries, keys and values in one tensor, with a bias."""
    return text.with_weights(
        f"{text.HEADER}{LENGTHS}  packed = Concat<axis=-1>(flat_query, flat_key, flat_value)\n"
        f"  biased = Add(packed, qkv_bias)\n"
        f"  mixed, {GROWN} = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
        f"(biased, , , {OLD}, lengths, total_tokens)\n{text.FOOTER}",
        qkv_bias=np.linspace(-1.0, 1.0, 64 + 2 * 32, dtype=np.float32),
    )


def counted_by_the_caller():
    """ONNX Runtime's op with the lengths as an input of the graph."""
    model = grouped()
    (cast,) = (node for node in model.graph.node if "lengths" in node.output)
    model.graph.node.remove(cast)
    lengths = onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT32, ["batch"])
    model.graph.input.insert(0, lengths)
    return model


def multi_head(attributes="", inputs="", *, before=""):
    """ONNX Runtime's op with as many key heads as query heads."""
    header = text.HEADER.replace("batch, 2, ", "batch, 4, ")
    random = np.random.default_rng(3)
    weights = {
        name: (random.standard_normal((64, 64)) / 8).astype(np.float32)
        for name in ("key_weight", "value_weight")
    }
    return text.with_weights(
        f"{header}{before}  mixed, {GROWN} = com.microsoft.MultiHeadAttention"
        f"<num_heads=4{attributes}>(flat_query, flat_key, flat_value, , , {inputs}, {OLD})\n"
        f"{text.FOOTER}",
        **weights,
    )


def scattered(attributes, *, mode="linear"):
    """ONNX's op on caches of full length, into which the graph writes."""
    header = (
        text.HEADER.replace("past, 16]", "64, 16]")
        .replace("total, 16]", "64, 16]")
        .replace('"" : 23', '"" : 24')
        .replace(
            "int64[batch, total] attention_mask",
            "int64[batch] written_tokens, int64[batch] kept_tokens",
        )
    )
    return text.with_weights(
        f"{header}{text.HEADS_FIRST}"
        f'  new_keys = TensorScatter<axis=2, mode="{mode}">(old_keys, key, written_tokens)\n'
        f'  new_values = TensorScatter<axis=2, mode="{mode}">(old_values, value, written_tokens)\n'
        f"  heads = Attention<scale=0.3, {attributes}>"
        "(query, new_keys, new_values, , , , kept_tokens)\n"
        f"{text.HEADS_LAST}{text.FOOTER}"
    )


def windowed(attributes):
    """ONNX's op as opset 25 has it, whose attributes hold the window."""
    model = flat_attention(attributes)
    model.opset_import[0].version = 25
    return model


BIAS = (
    text.CAUSAL
    + "  seen_11ST = Unsqueeze(seen_ST, front_axes)\n"
    + "  bias = Where(seen_11ST, nothing, hidden)\n"
)
ALIBI = text.CAUSAL + "  far_T = Cast<to=1>(key_T)\n  alibi = Mul(slopes, far_T)\n"
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
    "grouped-packed": packed(),
    "grouped-counted": counted_by_the_caller(),
    "multi-head": multi_head(", unidirectional=1"),
    "multi-head-scale": multi_head(", unidirectional=1, scale=0.4"),
    "multi-head-mask": multi_head("", "bias", before=BIAS),
    "scattered": scattered("is_causal=1"),
    "windowed": windowed("is_causal=1, left_window_size=4"),
    "windowed-right": windowed("right_window_size=0"),
    "grouped-partial": grouped(", do_rotary=1", ROTATED, heads=(2, 1)),
}
EXPECTED = {
    "attention-mask": {"scale": 0.3, "sliding_window": 5},
    "attention-softcap": {"scale": 0.25, "softcap": 2.0},
    "grouped-window": {"scale": 0.25, "sliding_window": 5},
    "multi-head": {"num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "scale": 0.25},
    "multi-head-scale": {"scale": 0.4, "sliding_window": 0},
    "scattered": {"scale": 0.3, "sliding_window": 0},
    "windowed": {"scale": 0.25, "sliding_window": 5},
    "windowed-right": {"scale": 0.25, "sliding_window": 0},
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
        (multi_head(), "it has no mask and is not causal"),
        (
            multi_head(", unidirectional=1", "alibi", before=ALIBI),
            "it adds a bias to the scores (ALiBi",
        ),
        (scattered("is_causal=0"), "it has no mask and is not causal"),
        (scattered("is_causal=1", mode="circular"), "writes in a circle: mode=circular"),
        (windowed("left_window_size=4, right_window_size=2"), "4 earlier and 2 later tokens"),
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
