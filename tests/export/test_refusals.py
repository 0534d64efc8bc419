"""Attention that no engine can stand for is refused, each kind with its own reason."""

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from gear_trt.cli.export import app
from gear_trt.errors import ErrorCode, ExitStatus, GearError
from gear_trt.export import export_model
from tests.export import text_graphs as text
from tests.export.conftest import EXACT
from tests.export.test_attention_ops import OLD, attention, flat_attention, grouped


def on_caches(nodes, *, before=text.GROWING):
    """Return a decoder whose nodes attend to new_keys and new_values, from query to heads."""
    return text.with_node(text.HEADS_FIRST + before + text.CAUSAL + nodes + text.HEADS_LAST)


def past_computed():
    return text.written_out(
        ("Concat<axis=2>(old_keys, key)", "Concat<axis=2>(faded_keys, key)"),
        ("new_keys =", "faded_keys = Mul(old_keys, scale)\n  new_keys ="),
    )


def shared_caches():
    return on_caches(
        "first_heads = Attention(query, new_keys, new_values, seen_ST)\n"
        "heads = Attention(first_heads, new_keys, new_values, seen_ST)\n"
    )


def head_dim_of(head_dim):
    """Return decomposed attention with heads of another size."""
    width, kv_width = text.HEADS * head_dim, text.KV_HEADS * head_dim
    random = np.random.default_rng(0)
    shapes = {
        "query_weight": (text.WIDTH, width),
        "key_weight": (text.WIDTH, kv_width),
        "value_weight": (text.WIDTH, kv_width),
        "output_weight": (width, text.WIDTH),
    }
    sizes = {
        "split_query": [0, 0, text.HEADS, head_dim],
        "split_key": [0, 0, text.KV_HEADS, head_dim],
        "merge_heads": [0, 0, width],
        "merge_groups": [0, text.HEADS, -1, head_dim],
    }
    weights = {
        name: (random.standard_normal(shape) / 8).astype(np.float32)
        for name, shape in shapes.items()
    }
    return text.with_weights(
        "".join(text.WRITTEN_OUT).replace(", 16]", f", {head_dim}]"),
        **weights,
        **{name: np.array(value) for name, value in sizes.items()},
    )


def narrow_keys():
    """Keys of 16 channels and values of 32, as multi-head latent attention has them."""
    wide = np.random.default_rng(0).standard_normal((text.WIDTH, 2 * 32)).astype(np.float32)
    graph = (
        "".join(text.WRITTEN_OUT)
        .replace("float[batch, 2, past, 16] old_values", "float[batch, 2, past, 32] old_values")
        .replace("float[batch, 2, total, 16] new_values", "float[batch, 2, total, 32] new_values")
        .replace("Reshape(flat_value, split_key)", "Reshape(flat_value, split_value)")
        .replace("Reshape(twice_values, merge_groups)", "Reshape(twice_values, merge_values)")
    )
    return text.with_weights(
        graph,
        value_weight=wide,
        split_value=np.array([0, 0, 2, 32]),
        merge_values=np.array([0, 4, -1, 32]),
        merge_heads=np.array([0, 0, 4 * 32]),
        output_weight=np.ones((4 * 32, text.WIDTH), np.float32),
    )


def read_again(cache):
    """Whose logits depend on the mean of a cache besides."""
    return text.written_out(
        (
            "logits = MatMul(mixed, output_weight)",
            f"mean = ReduceMean<keepdims=0>({cache})\n"
            "  shifted = Add(mixed, mean)\n  logits = MatMul(shifted, output_weight)",
        )
    )


def cross_attention():
    return on_caches(
        "heads = Attention(query, old_keys, old_values)\n",
    )


def slopes_in_mask():
    return attention(
        "is_causal=1",
        f"alibi, {OLD}",
        before=text.CAUSAL + "distance_T = Cast<to=1>(key_T)\n  alibi = Mul(slopes, distance_T)\n",
    )


def looks_ahead():
    return attention(
        "scale=0.3",
        f"ahead_ST, {OLD}",
        before=text.CAUSAL
        + "next_S1 = Add(query_S1, one)\n  ahead_ST = LessOrEqual(key_T, next_S1)\n",
    )


def counts_one_more():
    model = grouped()
    (cast,) = (node for node in model.graph.node if "lengths" in node.output)
    cast.input[0] = "mask_sum"
    return model


ALIBI = "it adds a bias to the scores (ALiBi, relative positions)"
HEAD_DIM = "which is no multiple of 16 up to 256"
REFUSED = {
    "past-computed": (past_computed, "past input is not a graph input but faded_keys"),
    "past-computed-grouped": (
        lambda: grouped(old="flat_key, old_values"),
        "past input is not a graph input but flat_key",
    ),
    "shared-caches": (
        shared_caches,
        "it reads the keys and values of layer 0 (KV shared between layers)",
    ),
    "head-dim-72": (lambda: head_dim_of(72), f"head_dim is 72, {HEAD_DIM}"),
    "head-dim-512": (lambda: head_dim_of(512), f"head_dim is 512, {HEAD_DIM}"),
    "present-read": (
        lambda: read_again("new_keys"),
        "cache old_keys is read outside of its attention layer too",
    ),
    "past-read": (
        lambda: read_again("old_values"),
        "cache old_values is read outside of its attention layer too",
    ),
    "no-mask": (lambda: flat_attention("is_causal=0"), "it has no mask and is not causal"),
    "looks-ahead": (looks_ahead, "its mask is not causal"),
    "narrow-keys": (narrow_keys, "its keys have 16 channels and its values 32"),
    "cross-attention": (
        cross_attention,
        "key is graph input old_keys alone, to which no new tokens are added (cross-attention)",
    ),
    "caches-swapped": (
        lambda: grouped(old="old_values, old_keys"),
        "inputs old_values, old_keys and outputs new_keys, new_values are not in the same order",
    ),
    "other-lengths": (
        counts_one_more,
        "its seqlens_k is not the count of past and new tokens, less one",
    ),
    "alibi": (slopes_in_mask, ALIBI),
    "alibi-grouped": (
        lambda: grouped("", ", , , , slopes"),
        "input attention_bias is not supported",
    ),
}


@pytest.fixture(scope="module", params=REFUSED)
def refused(request, tmp_path_factory):
    """A model file and the reason why it is refused."""
    build, reason = REFUSED[request.param]
    path = tmp_path_factory.mktemp("refused") / "model.onnx"
    onnx.save(build(), path)
    return path, reason


def test_the_reason_is_named_and_nothing_is_written(refused):
    path, reason = refused
    with pytest.raises(GearError) as caught:
        export_model(path, path.parent / "engine", config=EXACT, max_context=text.CONTEXT)
    assert caught.value.code is ErrorCode.NO_KV_CACHE
    assert reason in caught.value.detail
    assert list(path.parent.iterdir()) == [path]


def test_the_command_ends_with_the_status_of_an_unsupported_model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(shared_caches(), path)
    arguments = [str(path), "-o", str(tmp_path / "engine"), "--max-context", "64"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == ExitStatus.UNSUPPORTED == 5
    assert "KV shared between layers" in result.stderr
    assert list(tmp_path.iterdir()) == [path]
