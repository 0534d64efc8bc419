"""One detail of good attention is changed: the model is refused, or still computed as it is."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.export import export_model
from tests.export import text_graphs as text
from tests.export.conftest import EXACT
from tests.export.test_attention_ops import LENGTHS, OLD

PARTS = (17, 18)
"""Where the text is cut: two prefills of 17 and 1 tokens, and a third of what is left."""

FORMS = {
    "written-out": "".join(text.WRITTEN_OUT),
    "standard": text.HEADER
    + text.HEADS_FIRST
    + text.CAUSAL
    + f"heads, new_keys, new_values = Attention<scale=0.3>(query, key, value, seen_ST, {OLD})\n"
    + text.HEADS_LAST
    + text.FOOTER,
    "grouped": text.HEADER
    + LENGTHS
    + "mixed, new_keys, new_values = com.microsoft.GroupQueryAttention"
    + "<num_heads=4, kv_num_heads=2, do_rotary=1, local_window_size=7>"
    + f"(flat_query, flat_key, flat_value, {OLD}, lengths, total_tokens, cos_table, sin_table)\n"
    + text.FOOTER,
}

SEEN = "seen_ST = LessOrEqual(key_T, query_S1)"
TO_HEADS_LAST = "Transpose<perm=[0, 2, 1, 3]>(heads)"
# A change is texts in turn: what is replaced, and by what.
MASKED = {
    "mask-next-token": (
        SEEN,
        "next_S1 = Add(query_S1, one)\n  seen_ST = LessOrEqual(key_T, next_S1)",
    ),
    "mask-not-itself": (SEEN, "seen_ST = Less(key_T, query_S1)"),
    "mask-not-the-first": (
        SEEN,
        "past_ST = LessOrEqual(key_T, query_S1)\n  late_T = Greater(key_T, zero)\n"
        "  seen_ST = And(past_ST, late_T)",
    ),
    "mask-only-far": (
        SEEN,
        "near_S1 = Sub(query_S1, five)\n  seen_ST = LessOrEqual(key_T, near_S1)",
    ),
    "window": (text.CAUSAL, text.WINDOW_OF_5),
    "key-for-value": ("(value_BSHD)", "(key_BSHD)"),
    "output-axes": (TO_HEADS_LAST, "Transpose<perm=[0, 2, 3, 1]>(heads)"),
    "output-heads": (
        f"heads_last = {TO_HEADS_LAST}",
        "other_heads = Gather<axis=1>(heads, head_order)\n"
        "  heads_last = Transpose<perm=[0, 2, 1, 3]>(other_heads)",
    ),
    "query-heads": (
        "query = Transpose<perm=[0, 2, 1, 3]>(query_BSND)",
        "straight = Transpose<perm=[0, 2, 1, 3]>(query_BSND)\n"
        "  query = Gather<axis=1>(straight, head_order)",
    ),
}
TILED = "tiled_{0} = Concat<axis=1>(new_{0}, new_{0})\n  all_{0} = Identity(tiled_{0})"
WRITTEN_OUT = {
    **MASKED,
    "scale": ("Mul(products, scale)", "Mul(products, cap)"),
    "no-scale": ("Mul(products, scale)", "Identity(products)"),
    "bias": ("scores = Add(scaled", "lifted = Add(scaled, slopes)\n  scores = Add(lifted"),
    "keys-tiled": ("all_keys = Reshape(twice_keys, merge_groups)", TILED.format("keys")),
    "values-tiled": ("all_values = Reshape(twice_values, merge_groups)", TILED.format("values")),
    "softmax-over-queries": ("Softmax<axis=-1>", "Softmax<axis=-2>"),
    "softmax-over-heads": ("Softmax<axis=-1>", "Softmax<axis=1>"),
    "query-and-key-swapped": (
        "products = MatMul(query, turned_keys)",
        "turned_query = Transpose<perm=[0, 1, 3, 2]>(query)\n"
        "  turned_products = MatMul(all_keys, turned_query)\n"
        "  products = Transpose<perm=[0, 1, 3, 2]>(turned_products)",
    ),
    "old-value-for-key": ("Concat<axis=2>(old_keys", "Concat<axis=2>(old_values"),
    "past-scaled": (
        "new_keys = Concat<axis=2>(old_keys",
        "faded = Mul(old_keys, scale)\n  new_keys = Concat<axis=2>(faded",
    ),
    "all-keys-scaled": (
        "turned_keys = Transpose<perm=[0, 1, 3, 2]>(all_keys)",
        "louder = Mul(all_keys, cap)\n  turned_keys = Transpose<perm=[0, 1, 3, 2]>(louder)",
    ),
    "weights-scaled": (
        "heads = MatMul(weights",
        "halved = Mul(weights, scale)\n  heads = MatMul(halved",
    ),
}
STANDARD = {
    **MASKED,
    "scale": ("scale=0.3", "scale=0.7"),
    "softcap": ("scale=0.3", "scale=0.3, softcap=2.0"),
    "causal-besides": ("scale=0.3", "scale=0.3, is_causal=1"),
    "caches-swapped": (OLD, "old_values, old_keys"),
    "key-and-value-swapped": ("(query, key, value", "(query, value, key"),
    "bias": ("seen_ST, old", "slopes, old"),
}
GROUPED = {
    "scale": ("do_rotary=1", "do_rotary=1, scale=0.7"),
    "window": ("local_window_size=7", "local_window_size=8"),
    "interleaved": ("do_rotary=1", "do_rotary=1, rotary_interleaved=1"),
    "not-rotated": ("do_rotary=1", "do_rotary=0"),
    "tables-swapped": ("cos_table, sin_table", "sin_table, cos_table"),
    "lengths-one-less": (
        "lengths = Cast<to=6>(last_index)",
        "less = Sub(last_index, one)\n  lengths = Cast<to=6>(less)",
    ),
    "rotated-one-late": (
        "cos_table, sin_table)",
        "late_cos, late_sin)",
        "  lengths =",
        "  late_cos = Gather<axis=0>(cos_table, next_places)\n"
        "  late_sin = Gather<axis=0>(sin_table, next_places)\n  lengths =",
    ),
    "key-and-value-swapped": ("flat_key, flat_value", "flat_value, flat_key"),
    "caches-swapped": (OLD, "old_values, old_keys"),
}
CASES = [
    (form, name, change)
    for form, changes in (
        ("written-out", WRITTEN_OUT),
        ("standard", STANDARD),
        ("grouped", GROUPED),
    )
    for name, change in changes.items()
]
ROUTED = {
    "written-out": {
        "window", "key-for-value", "output-axes", "output-heads", "query-heads", "scale",
        "no-scale", "all-keys-scaled",
    },
    "standard": {
        "window", "key-for-value", "output-axes", "output-heads", "query-heads", "scale",
        "softcap", "causal-besides", "key-and-value-swapped",
    },
    "grouped": {
        "scale", "window", "interleaved", "not-rotated", "tables-swapped", "rotated-one-late",
        "key-and-value-swapped",
    },
}  # fmt: skip
"""Changes that are still attention; to refuse them would be a loss."""


def perturbed(form, change):
    graph = FORMS[form]
    for old, new in zip(change[::2], change[1::2], strict=True):
        assert old in graph
        graph = graph.replace(old, new, 1)
    return text.with_weights(graph)


def run_with_cache(model, token_ids):
    """Return the logits of the model in ONNX Runtime, part by part."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    keys = values = np.zeros((len(token_ids), text.KV_HEADS, 0, text.HEAD_DIM), np.float32)
    logits = []
    for part in np.split(token_ids, PARTS, axis=1):
        total = keys.shape[2] + part.shape[1]
        feeds = {
            "input_ids": part,
            "attention_mask": np.ones((len(part), total), np.int64),
            "old_keys": keys,
            "old_values": values,
        }
        part_logits, keys, values = session.run(["logits", "new_keys", "new_values"], feeds)
        logits.append(part_logits)
    return np.concatenate(logits, 1)


@pytest.mark.parametrize(("form", "name", "change"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_a_changed_detail_is_refused_or_kept(form, name, change, needs_library, tmp_path):
    model, path = perturbed(form, change), tmp_path / "model.onnx"
    onnx.save(model, path)
    options = {"config": EXACT, "max_context": text.CONTEXT}
    if name not in ROUTED[form]:
        with pytest.raises(GearError) as caught:
            export_model(path, tmp_path / "engine", **options)
        assert caught.value.code is ErrorCode.NO_KV_CACHE
        assert not (tmp_path / "engine").exists()
        return
    export_model(path, tmp_path / "engine", **options)
    token_ids = np.random.default_rng(1).integers(0, text.WIDTH, (1, 40))
    with gear_trt.load(tmp_path / "engine", batch=1, threads=1) as engine:
        steps = [engine.step(part, all_logits=True) for part in np.split(token_ids, PARTS, 1)]
    expected_BSV = run_with_cache(model, token_ids)
    np.testing.assert_allclose(np.concatenate(steps, 1), expected_BSV, atol=1e-4)
