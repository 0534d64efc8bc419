"""Sequences on a paged cache, stepped as the batcher steps them."""

import numpy as np
import pytest

from gear_trt.errors import GearError
from gear_trt.runtime.paged_cache import PagedCache
from gear_trt.runtime.token_plan import TokenPlan

TEXT = np.random.default_rng(5).integers(0, 256, 400).tolist()
OTHER = np.random.default_rng(6).integers(0, 256, 400).tolist()


def refusal(code, call, *args):
    with pytest.raises(GearError) as caught:
        call(*args)
    assert caught.value.code is code
    return caught.value


def new_cache(model, *, num_pages, slots):
    """A cache where the model's backend wants it."""
    memory = model.backend.memory
    return PagedCache(model.manifest.layers, num_pages=num_pages, slots=slots, memory=memory)


def open_sequence(engine, tokens, *, prompt=None, mark=0):
    config = engine.cache.layers[0].config
    prompt = len(tokens) if prompt is None else prompt
    return engine.cache.open(TokenPlan(tokens, prompt_tokens=prompt, config=config, mark=mark))


def run(engine, sequence, *, until=None):
    """Step to the end of a sequence's tokens, publishing its pages; return the last logits."""
    until = until or len(sequence.plan.tokens)
    logits_V = None
    while sequence.length < until:
        assert engine.cache.reserve(sequence)
        (logits_V,) = engine.step([sequence])
        assert (logits_V is None) == (sequence.length < len(sequence.plan.tokens))
        engine.cache.publish(sequence)
        engine.cache.check()
    return logits_V
