"""The old interface goes, whatever the graph derived from it."""

import numpy as np
import onnx
import pytest

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.export import export_model
from gear_trt.runtime.manifest import MODEL_FILE
from tests.export import text_graphs as text
from tests.export.conftest import EXACT

EMBED = "hidden_states = Gather(embedding, input_ids)"
PLACES = """
  words = Gather(embedding, input_ids)
  places = Gather(embedding, {positions})
  hidden_states = Add(words, places)
"""
COUNTED = """
  old_count = Shape<start=2, end=3>(old_keys)
  new_count = Shape<start=1, end=2>(input_ids)
  all_count = Add(old_count, new_count)
  counted_from = Squeeze(old_count)
  counted_to = Squeeze(all_count)
  counted_S = Range(counted_from, counted_to, one)
  counted_1S = Unsqueeze(counted_S, zero)
"""
SIZED = """
  batch = Shape<start=0, end=1>(old_values)
  tokens_1 = Shape<start=1, end=2>(input_ids)
  split_sizes = Concat<axis=0>(batch, tokens_1, head_sizes)
  query_BSND = Reshape(flat_query, split_sizes)
"""
FULL_SHAPE = """
  past_shape = Shape(old_values)
  batch_of_past = Gather(past_shape, zero)
  batch = Unsqueeze(batch_of_past, zero)
"""


def with_positions_input(model_text):
    return model_text.replace(
        "int64[batch, total] attention_mask",
        "int64[batch, total] attention_mask, int64[batch, tokens] position_ids",
    )


def build(*replacements, header=lambda text: text):
    text_of_model = "".join(text.WRITTEN_OUT)
    for old, new in replacements:
        assert old in text_of_model
        text_of_model = text_of_model.replace(old, new)
    return text.with_weights(header(text_of_model))


def export(model, folder, **options):
    onnx.save(model, folder / "model.onnx")
    return export_model(
        folder / "model.onnx",
        folder / "engine",
        config=EXACT,
        max_context=text.CONTEXT,
        **options,
    )


def assert_equal_logits(model, folder, original=None):
    token_ids = np.random.default_rng(1).integers(0, text.WIDTH, (2, 40))
    with gear_trt.load(folder / "engine", batch=2, threads=1) as engine:
        steps = [engine.step(part, all_logits=True) for part in np.split(token_ids, [17, 18], 1)]
    expected_BSV = text.run_original(original or model, token_ids)
    np.testing.assert_allclose(np.concatenate(steps, 1), expected_BSV, atol=1e-4)


def test_position_ids_are_computed(needs_library, tmp_path):
    model = build((EMBED, PLACES.format(positions="position_ids")), header=with_positions_input)
    counted = build((EMBED, COUNTED + PLACES.format(positions="counted_1S")))
    export(model, tmp_path)
    assert_equal_logits(model, tmp_path, original=counted)


def test_positions_counted_from_the_past_are_computed(needs_library, tmp_path):
    model = build((EMBED, COUNTED + PLACES.format(positions="counted_1S")))
    export(model, tmp_path)
    assert_equal_logits(model, tmp_path)


@pytest.mark.parametrize("read", [SIZED.split("\n")[1], FULL_SHAPE])
def test_a_batch_size_taken_from_the_past_is_taken_from_the_tokens(needs_library, tmp_path, read):
    sized = SIZED.replace(SIZED.split("\n")[1], read)
    model = build(("  query_BSND = Reshape(flat_query, split_query)\n", sized))
    export(model, tmp_path)
    assert_equal_logits(model, tmp_path)


def test_narrow_token_ids_are_widened(tmp_path):
    model = build(("int64[batch, tokens] input_ids", "int32[batch, tokens] input_ids"))
    export(model, tmp_path)
    inputs = onnx.load(tmp_path / "engine" / MODEL_FILE, load_external_data=False).graph.input
    assert inputs[0].type.tensor_type.elem_type == onnx.TensorProto.INT64


def test_logits_may_have_another_name_and_the_runtime_s_names_may_be_taken(tmp_path):
    model = build(
        ("float[batch, tokens, 64] logits", "float[batch, tokens, 64] scores_of_words"),
        ("logits = MatMul", "scores_of_words = MatMul"),
        ("hidden_states", "slots"),
    )
    export(model, tmp_path)
    graph = onnx.load(tmp_path / "engine" / MODEL_FILE, load_external_data=False).graph
    assert graph.output[0].name == "logits"
    assert "slots" not in {name for node in graph.node for name in node.output}


LEFT_OVER = """
  seen = Cast<to=1>(attention_mask)
  share = ReduceMean<keepdims=1>(seen, last_axis)
  shares = Unsqueeze(share, last_axis)
  shared = Mul(mixed, shares)
  logits = MatMul(shared, output_weight)
"""


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (
            ("logits = MatMul(mixed, output_weight)", LEFT_OVER),
            "still needs its input attention_mask",
        ),
        (("int64[batch, tokens] input_ids", "int64[batch, 7] input_ids"), "exactly 7 tokens"),
        (("input_ids", "ids"), "no input input_ids of shape"),
        (("float[batch, tokens, 64] logits", "float[batch, heads] mixed"), "no output logits"),
    ],
)
def test_an_interface_that_does_not_fit_is_refused(tmp_path, replacement, message):
    with pytest.raises(GearError, match=message) as caught:
        export(build(replacement), tmp_path)
    assert caught.value.code is ErrorCode.UNSUPPORTED_MODEL
    assert not (tmp_path / "engine").exists()


def test_the_reader_of_a_left_over_input_is_named(tmp_path):
    model = build(("logits = MatMul(mixed, output_weight)", LEFT_OVER))
    with pytest.raises(GearError) as caught:
        export(model, tmp_path)
    assert "(Cast) reads it" in caught.value.detail


def test_an_old_opset_is_refused(tmp_path):
    model = build(("Shape<start=1, end=2>(input_ids)", "Shape(input_ids)"))
    model.opset_import[0].version = 12
    with pytest.raises(GearError, match="ONNX opset 12, 13 or later"):
        export(model, tmp_path)
