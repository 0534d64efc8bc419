"""The real model in transformers over compressed pages, against the engine path."""

import pytest
import torch

import gear_trt
from gear_trt.torch import GearCache, measure_key_scales

pytestmark = pytest.mark.slow

PROMPTS = ("The capital of France is", "Explain why the sky is blue.", "def fibonacci(n):")
NEW_TOKENS = 100


@pytest.fixture(scope="module")
def model(checkpoint):
    import gear_trt.torch.cache  # noqa: F401 - registers the attention

    checkpoint.network.set_attn_implementation("gear")
    return checkpoint.network


@pytest.fixture(scope="module")
def key_scales(model):
    return measure_key_scales(model, "k4v4")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_those_of_the_engine(model, key_scales, export, prompt):
    """The kernels are the same; weights meet in another order, so near-ties could differ."""
    cache = GearCache(model.config, "k4v4", key_scales)
    with gear_trt.load(export("k4v4"), max_tokens=256) as engine:
        ids = torch.tensor([engine.tokenizer.encode(prompt)])
        got = model.generate(
            ids,
            past_key_values=cache,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
        )[0, ids.shape[1] :].tolist()
        logits = engine.step(ids.tolist())[0]
        want = []
        for _ in range(NEW_TOKENS):
            logits[
                list(engine.manifest.model.eos_token_ids)
            ] = -torch.inf  # min_new_tokens hides it
            want.append(int(logits.argmax()))
            logits = engine.step([[want[-1]]])[0]
    assert got == want
    assert cache.compression_ratio > 1
