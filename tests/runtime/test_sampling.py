"""Options are checked, and tokens are chosen as transformers would."""

import typing

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.options import GenerationKeywords, GenerationOptions
from gear_trt.runtime.sampling import Sampler

LOGITS = np.random.default_rng(0).normal(size=50).astype(np.float32) * 3


def choose(token_ids=(1, 2), **options):
    return Sampler(GenerationOptions.checked(options)).choose(LOGITS, list(token_ids))


def test_keywords_and_options_are_the_same():
    keywords = typing.get_type_hints(GenerationKeywords)
    assert set(keywords) == set(GenerationOptions.model_fields)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"stop": [""]},
        {"stop": 5.5},
        {"eos_token_id": ["x"]},
        {"num_beams": 4},
    ],
)
def test_bad_option_is_named(options):
    with pytest.raises(GearError) as caught:
        GenerationOptions.checked(options)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert next(iter(options)) in caught.value.message


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({}, False),
        ({"temperature": 0.7}, True),
        ({"top_p": 0.9}, True),
        ({"temperature": 0}, False),
        ({"temperature": 0, "do_sample": True}, False),
        ({"do_sample": True}, True),
        ({"do_sample": False, "temperature": 0.7}, False),
        ({"repetition_penalty": 1.2}, False),
    ],
)
def test_sampling_follows_from_the_options(options, samples):
    assert GenerationOptions.checked(options).samples == samples


def test_single_values_stand_for_lists():
    options = GenerationOptions.checked({"stop": "x", "eos_token_id": 3})
    assert options.stop == ("x",)
    assert options.eos_token_id == (3,)


def test_greedy():
    assert choose() == LOGITS.argmax()
    assert choose(temperature=0) == LOGITS.argmax()


def test_one_candidate_leaves_no_choice():
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert choose(**options) == LOGITS.argmax()


def test_repetition_penalty_turns_away_from_tokens_seen():
    best = int(LOGITS.argmax())
    assert choose(token_ids=[best], repetition_penalty=100.0) != best


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3},
    ],
)
def test_distribution_is_that_of_transformers(options):
    """The scores after all processors are those that `generate` would draw from."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_layer=1, n_head=1, n_embd=8))
    token_ids = [3, 4, int(LOGITS.argmax())]
    config = GenerationConfig(do_sample=True, **{"top_k": 0, **options})
    processors = model._get_logits_processor(config, input_ids_seq_length=3)
    want = processors(torch.tensor([token_ids]), torch.tensor(LOGITS)[None])
    sampler = Sampler(GenerationOptions.checked(options))
    got = sampler._processors(torch.tensor([token_ids]), torch.tensor(LOGITS)[None])
    torch.testing.assert_close(got, want)


def test_seed_makes_draws_repeatable():
    def draws(seed):
        sampler = Sampler(GenerationOptions.checked({"temperature": 2.0, "seed": seed}))
        return [sampler.choose(LOGITS, [1]) for _ in range(20)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(None) != draws(None)


def test_forbidden_tokens_are_never_chosen():
    logits = np.where(np.arange(50) == 7, LOGITS, -np.inf).astype(np.float32)
    for options in ({}, {"temperature": 2.0, "top_p": 0.9}):
        assert Sampler(GenerationOptions.checked(options)).choose(logits, [1]) == 7


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_must_be_finite(value):
    logits = LOGITS.copy()
    logits[3] = value
    with pytest.raises(GearError) as caught:
        Sampler(GenerationOptions()).choose(logits, [1])
    assert caught.value.code is ErrorCode.NON_FINITE_ACTIVATION
