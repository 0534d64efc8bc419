"""GearCache inside transformers: the model's own logits, batches, beams, memory, refusals."""

import copy

import pytest
import torch
from transformers import DynamicCache

import gear_trt.torch as gear_torch
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.footprint import fp16_bytes_per_token
from gear_trt.spec import CompressionConfig, bits_per_element
from gear_trt.torch import GearCache
from tests.torch.networks import SUPPORTED, network, steps, tokens

LENGTH = 150


def geared(model):
    model = copy.deepcopy(model)
    model.set_attn_implementation("gear")
    return model


@pytest.fixture(scope="module", params=SUPPORTED)
def pair(request):
    """A model with transformers' attention, and the same one with ours."""
    model = network(request.param)
    return model, geared(model)


@pytest.fixture(scope="module")
def llama():
    model = network("llama")
    return model, geared(model)


def refusal(code, call, *args, **kwargs):
    with pytest.raises(GearError) as caught:
        call(*args, **kwargs)
    assert caught.value.code is code
    return caught.value


@pytest.mark.parametrize("parts", [(LENGTH,), (70, 1, 1, 64, 14), (1,) * LENGTH], ids=len)
def test_exact_pages_give_the_logits_of_the_model(pair, parts):
    model, ours = pair
    ids = tokens(2, LENGTH)
    want = steps(model, DynamicCache(config=model.config), ids, (LENGTH,))
    cache = GearCache(ours.config, "exact")
    got = steps(ours, cache, ids, parts)
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    assert cache.get_seq_length() == LENGTH
    assert cache.lengths == [LENGTH, LENGTH]


@pytest.mark.parametrize("side", ["left", "right", "holes"])
def test_padding_changes_nothing(pair, side):
    """Every sequence of a padded batch has the logits that it has alone."""
    _, ours = pair
    counts, columns = (LENGTH, 90, 3), LENGTH
    ids = torch.zeros(3, columns, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, count in enumerate(counts):
        places = {
            "left": torch.arange(columns - count, columns),
            "right": torch.arange(count),
            "holes": torch.randperm(columns, generator=torch.Generator().manual_seed(row))[:count],
        }[side].sort()[0]
        ids[row, places] = tokens(1, count, seed=row)[0]
        mask[row, places] = 1
    cache = GearCache(ours.config, "exact")
    got = steps(ours, cache, ids, (columns - 20, 20), mask)
    assert cache.lengths == list(counts)
    for row, count in enumerate(counts):
        alone = steps(ours, GearCache(ours.config, "exact"), tokens(1, count, seed=row), (count,))
        torch.testing.assert_close(got[row][mask[row] == 1], alone[0], atol=2e-4, rtol=1e-4)


def test_generate_with_left_padding(pair):
    model, ours = pair
    ids, mask = tokens(2, 90), torch.ones(2, 90, dtype=torch.int64)
    mask[1, :37] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 60, "do_sample": False}
    want = model.generate(**inputs)
    got = ours.generate(**inputs, past_key_values=GearCache(ours.config, "exact"))
    assert torch.equal(got, want)


def test_a_second_turn_continues_the_cache(llama):
    model, ours = llama
    cache = GearCache(ours.config, "exact")
    first = ours.generate(tokens(1, 70), past_key_values=cache, max_new_tokens=9, do_sample=False)
    ids = torch.cat([first, tokens(1, 30, seed=2)], dim=1)
    got = ours.generate(ids, past_key_values=cache, max_new_tokens=9, do_sample=False)
    assert torch.equal(got, model.generate(ids, max_new_tokens=9, do_sample=False))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_beams_share_pages_and_give_the_beams_of_the_model(family):
    model = network(family)
    ours = geared(model)
    ids = tokens(2, 200)
    options = {"max_new_tokens": 80, "num_beams": 3, "do_sample": False}
    want = model.generate(ids, **options)
    cache = GearCache(ours.config, "exact")
    got = ours.generate(ids, past_key_values=cache, **options)
    assert torch.equal(got, want)


def test_beams_of_one_past_take_its_pages_once(llama):
    _, ours = llama
    cache = GearCache(ours.config, "k4v4")
    steps(ours, cache, tokens(1, 200), (200,))
    one, buffers = cache.nbytes, sum(layer._buffer.nbytes for layer in cache.layers)
    cache.batch_repeat_interleave(4)
    assert cache.lengths == [200] * 4
    assert cache.nbytes == one + 3 * buffers
    steps(ours, cache, tokens(4, 100), (100,))  # every copy now fills pages of its own
    assert cache.nbytes > one + 3 * buffers


def test_selected_sequences_go_on_as_if_they_were_alone(llama):
    _, ours = llama
    ids = tokens(3, 140)
    cache = GearCache(ours.config, "exact")
    steps(ours, cache, ids, (140,))
    cache.batch_select_indices(torch.tensor([2, 0]))
    following = tokens(2, 70, seed=3)
    got = steps(ours, cache, following, (70,))
    whole = torch.cat([ids[[2, 0]], following], dim=1)
    want = steps(ours, GearCache(ours.config, "exact"), whole, (210,))[:, 140:]
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, monkeypatch):
    """The op takes it as it is: nothing is widened."""
    model = network("llama").to(dtype)
    ours = geared(model)
    ids = tokens(1, LENGTH)
    seen = set()

    def attention(*sides, **options):
        seen.update(side.dtype for side in sides)
        return gear_torch.attention(*sides, **options)

    monkeypatch.setattr("gear_trt.torch.layer.attention", attention)
    got = steps(ours, GearCache(ours.config, "fp16"), ids, (100, 50)).float()
    assert seen == {dtype}
    want = steps(network("llama"), DynamicCache(), ids, (LENGTH,))
    theirs = steps(model, DynamicCache(), ids, (LENGTH,)).float()
    assert got.dtype == torch.float32
    assert (got - want).norm() < 1.5 * (theirs - want).norm()


def test_bytes_are_those_of_pages_and_buffers(llama):
    _, ours = llama
    cache = GearCache(ours.config, "k4v4")
    assert (cache.nbytes, cache.allocated_bytes, cache.compression_ratio) == (0, 0, 0.0)
    steps(ours, cache, tokens(2, 4 + 64 * 5 + 3), (327,))
    config = CompressionConfig.preset("k4v4")
    page = bits_per_element(config, 32) / 8 * 2 * 64 * 32
    buffer = 2 * 2 * 68 * 32 * 2
    assert cache.nbytes == 2 * 2 * (2 * 5 * page + buffer)
    assert cache.fp16_bytes == 2 * 327 * sum(
        fp16_bytes_per_token([layer._facts]) for layer in cache.layers
    )
    assert cache.compression_ratio == cache.fp16_bytes / cache.nbytes
    assert cache.nbytes <= cache.allocated_bytes <= 1.3 * cache.nbytes


def test_growth_holds_one_layer_twice_at_most(llama, monkeypatch):
    """No tensor of the whole cache exists, and old pools go as soon as they are copied."""
    _, ours = llama
    cache = GearCache(ours.config, "k4v4")
    steps(ours, cache, tokens(1, 300), (300,))
    pools = [layer._pages.pool for layer in cache.layers]
    steps(ours, cache, tokens(1, 300), (300,))
    for old, layer in zip(pools, cache.layers, strict=True):
        assert old.data_ptr() != layer._pages.pool.data_ptr()
    sizes = [len(layer._pages.pool) for layer in cache.layers]
    assert sizes == [9, 9]


def test_pages_behind_the_window_are_given_back():
    ours = geared(network("mistral", sliding_window=100))
    cache = GearCache(ours.config, "k4v4")
    steps(ours, cache, tokens(1, 640), (640,))
    layer = cache.layers[0]
    assert len(layer._pages.pool) == 9
    steps(ours, cache, tokens(1, 40), (1,) * 40)
    assert layer._pages.in_use == 2  # tokens 516 to 643: the window, a chunk that `crop` may want
    assert len(layer._pages.pool) <= 3
    assert cache.fp16_bytes == 100 * 2 * fp16_bytes_per_token([layer._facts])


def test_reset_takes_another_batch(llama):
    _, ours = llama
    cache = GearCache(ours.config, "exact")
    steps(ours, cache, tokens(3, 90), (90,))
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes, cache.lengths) == (0, 0, [])
    ids = tokens(1, 20)
    want = steps(ours, GearCache(ours.config, "exact"), ids, (20,))
    assert torch.equal(steps(ours, cache, ids, (20,)), want)


def test_crop_inside_the_open_chunk(llama):
    _, ours = llama
    ids, other = tokens(1, 150), tokens(1, 30, seed=5)
    cache = GearCache(ours.config, "k4v4")
    steps(ours, cache, ids, (150,))
    cache.crop(-10)
    assert cache.get_seq_length() == 140
    got = steps(ours, cache, other, (30,))
    fresh = GearCache(ours.config, "k4v4")
    steps(ours, fresh, ids, (140,))
    torch.testing.assert_close(got, steps(ours, fresh, other, (30,)))
    cache.crop(-170)
    assert cache.get_seq_length() == 0


def test_crop_into_a_page_is_refused(llama):
    _, ours = llama
    cache = GearCache(ours.config, "k4v4")
    steps(ours, cache, tokens(1, 140), (140,))
    error = refusal(ErrorCode.BAD_REQUEST, cache.crop, -20)
    assert "token 120 is in a compressed page already" in error.message
    assert cache.get_seq_length() == 140
    with pytest.raises(ValueError, match="negative number"):
        cache.crop(3)


def test_crop_of_a_padded_batch_is_refused(llama):
    _, ours = llama
    cache = GearCache(ours.config, "k4v4")
    mask = torch.ones(2, 60, dtype=torch.int64)
    mask[0, :5] = 0
    steps(ours, cache, tokens(2, 60), (60,), mask)
    assert "padding" in refusal(ErrorCode.BAD_REQUEST, cache.crop, -1).message


def test_a_mask_that_hides_held_tokens_is_refused(llama):
    _, ours = llama
    cache = GearCache(ours.config)
    steps(ours, cache, tokens(1, 30), (30,))
    mask = torch.ones(1, 31, dtype=torch.int64)
    mask[0, 3] = 0
    error = refusal(
        ErrorCode.BAD_REQUEST, ours, tokens(1, 1), attention_mask=mask, past_key_values=cache
    )
    assert "attention_mask shows [29] earlier tokens, the cache holds [30]" in error.message


def test_another_batch_is_refused(llama):
    _, ours = llama
    cache = GearCache(ours.config)
    steps(ours, cache, tokens(2, 30), (30,))
    error = refusal(ErrorCode.BAD_REQUEST, ours, tokens(3, 1), past_key_values=cache)
    assert "holds 2 sequences, the call has 3" in error.message


@pytest.mark.parametrize("options", [{"use_cache": False}, {"past_key_values": DynamicCache()}])
def test_keys_from_elsewhere_are_refused(llama, options):
    _, ours = llama
    error = refusal(ErrorCode.BAD_REQUEST, ours, tokens(1, 5), **options)
    assert "do not come from a GearCache" in error.message
    assert "past_key_values=GearCache(model.config)" in error.hint


def test_a_model_with_other_attention_is_refused(llama):
    model, _ = llama
    error = refusal(ErrorCode.BAD_REQUEST, GearCache, model.config)
    assert "by 'eager'" in error.message
    assert "attn_implementation='gear'" in error.hint


def test_attention_sinks_are_refused():
    ours = geared(network("gpt-oss"))
    error = refusal(
        ErrorCode.UNSUPPORTED_MODEL, ours, tokens(1, 5), past_key_values=GearCache(ours.config)
    )
    assert "attention sinks (s_aux)" in error.message


def test_masks_of_ones_own_are_refused(llama):
    _, ours = llama
    mask = torch.zeros(1, 1, 5, 5)
    error = refusal(
        ErrorCode.UNSUPPORTED_MODEL,
        ours,
        tokens(1, 5),
        attention_mask=mask,
        past_key_values=GearCache(ours.config),
    )
    assert "attention mask of its own" in error.message


def test_layers_that_keep_something_else_are_refused(llama):
    _, ours = llama
    config = copy.deepcopy(ours.config)
    config.layer_types = ["full_attention", "linear_attention"]
    error = refusal(ErrorCode.UNSUPPORTED_MODEL, GearCache, config)
    assert "layers of type linear_attention" in error.message


def test_a_head_dim_without_a_page_is_refused():
    ours = geared(network("llama", head_dim=24))
    error = refusal(
        ErrorCode.UNSUPPORTED_MODEL, ours, tokens(1, 5), past_key_values=GearCache(ours.config)
    )
    assert "head_dim must be a multiple of 16" in error.message


def test_a_window_that_the_config_does_not_name_is_refused(llama):
    _, ours = llama
    cache = GearCache(ours.config)
    cache.layers[1].sliding_window = 7
    error = refusal(ErrorCode.UNSUPPORTED_MODEL, ours, tokens(1, 5), past_key_values=cache)
    assert "layer 1 attends in a window of None tokens, its config says 7" in error.message


def test_training_with_dropout_is_refused():
    ours = geared(network("llama", attention_dropout=0.1)).train()
    error = refusal(
        ErrorCode.UNSUPPORTED_MODEL, ours, tokens(1, 5), past_key_values=GearCache(ours.config)
    )
    assert "model.eval()" in error.message


def test_values_that_are_not_finite_are_refused_by_the_kernels(llama):
    _, ours = llama
    ours = copy.deepcopy(ours)
    ours.model.layers[1].self_attn.v_proj.weight.data[33] = torch.inf
    with pytest.raises(ValueError, match="layer 1, KV head 1, token 0 of sequence 0: value"):
        steps(ours, GearCache(ours.config), tokens(1, 5), (5,))


def test_an_unknown_preset_is_refused(llama):
    _, ours = llama
    refusal(ErrorCode.UNKNOWN_PRESET, GearCache, ours.config, "k5v5")
