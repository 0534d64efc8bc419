"""Scales of key channels: same scores, less lost, and nothing else changes."""

import copy

import pytest
import torch
from transformers import DynamicCache

from gear_trt.errors import ErrorCode, GearError
from gear_trt.reference.key_scales import key_energy, key_scales, query_energy
from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.spec.calibration import calibration_tokens
from gear_trt.spec.model_config import LayerRule
from gear_trt.torch import GearCache, measure_key_scales
from tests.torch.networks import TINY, network, steps, tokens

LENGTH = 300
HEADS, HEAD_DIM = 2, 32
EIGHT_BITS = CompressionConfig.preset("k4v4", key_bits=8, value_bits=8)
THREE_BIT_KEYS = CompressionConfig.preset("k4v4", key_bits=3, value_bits=8)


def uneven(family="llama", **changes):
    """A network some of whose key channels are far larger than others, as real ones have them."""
    model = network(family, **changes)
    with torch.no_grad():
        for layer in model.model.layers:
            weight = layer.self_attn.k_proj.weight
            weight.unflatten(0, (-1, HEAD_DIM))[:, [3, 3 + HEAD_DIM // 2]] *= 20
    model.set_attn_implementation("gear")
    return model


@pytest.fixture(scope="module")
def model():
    return uneven()


@pytest.fixture(scope="module")
def scales(model):
    return measure_key_scales(model, "k4v4")


def logits(model, ids, cache, mask=None):
    """Logits of all tokens, in parts of 50: later ones read what is compressed."""
    parts = [len(part) for part in torch.arange(ids.shape[1]).split(50)]
    return steps(model, cache, ids, parts, mask)


def lost(model, compression, scales=None):
    """Squared error of the logits, over that of none."""
    ids = tokens(2, LENGTH)
    exact = logits(model, ids, GearCache(model.config, "exact"))
    got = logits(model, ids, GearCache(model.config, compression, key_scales=scales))
    return float((got - exact).square().sum() / exact.square().sum())


def refusal(call, *args, **kwargs):
    with pytest.raises(GearError) as caught:
        call(*args, **kwargs)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert "measure_key_scales" in caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_arbitrary_scales_leave_the_logits_of_fine_codes(family, kv_heads):
    model = network(family, num_key_value_heads=kv_heads)
    model.set_attn_implementation("gear")
    random = torch.Generator().manual_seed(0)
    scales = [torch.exp(torch.randn(kv_heads, HEAD_DIM, generator=random) / 2) for _ in range(2)]
    assert lost(model, EIGHT_BITS, scales) < 2 * lost(model, EIGHT_BITS) + 1e-5


def test_an_open_chunk_has_the_same_scores_however_keys_are_scaled(model):
    """Nothing is compressed yet: what differs is the rounding to half precision."""
    ids = tokens(1, 60)
    scales = [torch.full((HEADS, HEAD_DIM), 4.0)] * 2
    plain, scaled = (
        logits(model, ids, GearCache(model.config, "k4v4", given)) for given in (None, scales)
    )
    torch.testing.assert_close(scaled, plain)


@pytest.mark.parametrize("queries_per_key", [1, 2, 3])
def test_measured_scales_lose_less_where_channels_are_uneven(queries_per_key):
    model = uneven(hidden_size=96, num_attention_heads=6, num_key_value_heads=6 // queries_per_key)
    scales = measure_key_scales(model, THREE_BIT_KEYS)
    assert lost(model, THREE_BIT_KEYS, scales) < 0.5 * lost(model, THREE_BIT_KEYS)


def test_scales_are_those_of_the_reference(model):
    """The first layer's keys and queries as transformers computes them, without the sinks."""
    ids = torch.from_numpy(calibration_tokens(TINY["vocab_size"], TINY["max_position_embeddings"]))
    theirs, cache, queries = copy.deepcopy(model), DynamicCache(), []
    theirs.set_attn_implementation("eager")
    layer = theirs.model.layers[0].self_attn
    layer.q_proj.register_forward_hook(lambda *call: queries.append(call[-1]))
    with torch.no_grad():
        theirs(ids, past_key_values=cache)
    query_NTD = queries[0][0].unflatten(-1, (-1, HEAD_DIM)).transpose(0, 1)
    key_HTD = cache.layers[0].keys[0, :, 4:].numpy()
    want = key_scales(
        query_energy(_rotated_by_position(theirs, query_NTD)[:, 4:].numpy(), HEADS),
        key_energy(key_HTD, 32),
    )
    got = measure_key_scales(model, "k4v4")[0]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-3, atol=0)


def _rotated_by_position(model, query_NTD):
    positions = torch.arange(query_NTD.shape[1])[None]
    cos, sin = model.model.rotary_emb(query_NTD, positions)
    first, second = query_NTD.chunk(2, dim=-1)
    return query_NTD * cos + torch.cat([-second, first], dim=-1) * sin


def test_measuring_again_gives_the_same_and_leaves_the_model_alone(model):
    other = uneven()
    other.set_attn_implementation("sdpa")
    once, again = (measure_key_scales(of, "k4v4") for of in (model, other))
    assert other.config._attn_implementation == "sdpa"
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_layers_get_scales_by_their_own_config(model, scales):
    rules = [LayerRule.of("1", {"key_bits": 16, "rotate_keys": 0}, "here")]
    compression = ModelConfig.of(CompressionConfig.preset("k4v4"), rules)
    first, second = measure_key_scales(model, compression)
    torch.testing.assert_close(first, scales[0])
    assert second is None
    assert lost(model, compression, [first, second]) < lost(model, compression)


@pytest.mark.parametrize("preset", ["exact", "fp16", "paper-4bit"])
def test_keys_that_are_not_rotated_and_quantized_have_no_scales(model, scales, preset):
    assert measure_key_scales(model, preset) == [None, None]
    assert lost(model, preset, scales) == lost(model, preset)


def test_a_model_too_short_to_fill_a_page_has_no_scales():
    assert measure_key_scales(network("llama", max_position_embeddings=35)) == [None, None]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, scales, side):
    counts = (LENGTH, 170)
    ids = torch.zeros(2, LENGTH, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, count in enumerate(counts):
        places = slice(LENGTH - count, None) if side == "left" else slice(count)
        ids[row, places] = tokens(1, count, seed=row)[0]
        mask[row, places] = 1
    got = logits(model, ids, GearCache(model.config, EIGHT_BITS, scales), mask)
    for row, count in enumerate(counts):
        cache = GearCache(model.config, EIGHT_BITS, scales)
        alone = logits(model, tokens(1, count, seed=row), cache)[0]
        error = (got[row][mask[row] == 1] - alone).norm() / alone.norm()
        assert error < 0.02  # pages fill at other parts of the input


def test_selected_sequences_keep_their_scales(model, scales):
    ids, following = tokens(3, 150), tokens(2, 50, seed=3)
    cache = GearCache(model.config, "k4v4", scales)
    logits(model, ids, cache)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    cache.batch_select_indices(torch.tensor([0, 1]))
    got = logits(model, following, cache)
    whole = torch.cat([ids[[2, 0]], following], dim=1)
    want = logits(model, whole, GearCache(model.config, "k4v4", scales))[:, 150:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_beam_search_and_reset(model, scales):
    ids = tokens(2, 100)
    cache = GearCache(model.config, EIGHT_BITS, scales)
    options = {"max_new_tokens": 20, "num_beams": 3, "do_sample": False, "past_key_values": cache}
    first = model.generate(ids, **options)
    cache.reset()
    assert torch.equal(model.generate(ids, **options), first)


def test_decompressed_keys_are_those_of_the_model(model, scales):
    ids = tokens(1, LENGTH)
    exact, scaled = (
        GearCache(model.config, *given) for given in (("exact",), (EIGHT_BITS, scales))
    )
    for cache in (exact, scaled):
        logits(model, ids, cache)
    want, got = (cache.layers[0].decompressed(0) for cache in (exact, scaled))
    for side, name in enumerate(("keys", "values")):
        error = (got[side] - want[side]).norm() / want[side].norm()
        assert error < 0.01, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = uneven().to(dtype)
    scales = measure_key_scales(model, THREE_BIT_KEYS)
    assert {layer.dtype for layer in scales} == {torch.float32}
    assert lost(model, THREE_BIT_KEYS, scales) < lost(model, THREE_BIT_KEYS)


def test_scales_of_other_layers_are_refused(model, scales):
    message = refusal(GearCache, model.config, "k4v4", scales[:1])
    assert message == "key scales are for 1 layers, the model has 2"


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_scales_that_cannot_divide_are_refused(model, scales, value):
    bad = scales[1].clone()
    bad[1, 5] = value
    message = refusal(GearCache, model.config, "k4v4", [scales[0], bad])
    assert message == "key scales of layer 1 are not all positive and finite"


@pytest.mark.parametrize("shape", [(HEADS, 16), (1, HEAD_DIM), (HEAD_DIM,), ()], ids=str)
def test_scales_of_another_shape_are_refused(model, scales, shape):
    cache = GearCache(model.config, "k4v4", [scales[0], torch.ones(shape)])
    message = refusal(model, tokens(1, 5), past_key_values=cache)
    assert message == f"key scales of layer 1 are {list(shape)}, its keys [2, 32]"


def test_scales_lie_where_the_keys_lie(model, scales):
    layer = GearCache(model.config, "k4v4", scales).layers[0]
    keys = torch.empty(1, HEADS, 5, HEAD_DIM, device="meta")
    layer.lazy_initialization(keys, keys)
    query, scaled = layer._scaled(keys.transpose(1, 2), keys.transpose(1, 2))
    assert query.device == scaled.device == keys.device
