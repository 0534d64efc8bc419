"""The whole way of the data on a real model: GGUF → engine folder → runtime → kernels."""

import numpy as np
import pytest
import torch

import gear_trt
from gear_trt.bench.baseline import Fp32Engine
from gear_trt.bench.progress import silent
from gear_trt.eval.engine import EngineSubject
from gear_trt.eval.judge import judge

pytestmark = pytest.mark.slow

PROMPTS = (
    "The capital of France is",
    "Explain why the sky is blue.",
    "Write a short poem about the sea.",
    "List three uses of a hammer.",
    "def fibonacci(n):",
)
NEW_TOKENS = 64


@pytest.fixture(scope="session")
def transformers_greedy(checkpoint):
    """Per prompt: its tokens, and transformers' FP32 greedy tokens and logits."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    model = checkpoint.network
    model.set_attn_implementation("sdpa")
    answers = []
    for prompt in PROMPTS:
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        result = model.generate(
            **encoded,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        length = encoded["input_ids"].shape[1]
        logits = torch.stack(result.logits)[:, 0].numpy()
        answers.append((result.sequences[0].tolist(), length, logits))
    return answers


def test_exact_cache_gives_transformers_tokens_and_logits(export, transformers_greedy):
    with gear_trt.load(export("exact"), max_tokens=256) as engine:
        for tokens, length, want in transformers_greedy:
            engine.cache.reset()
            logits = [engine.step([tokens[:length]])[0]]
            logits += [engine.step([[token]])[0] for token in tokens[length:-1]]
            got = np.stack(logits)
            np.testing.assert_allclose(got, want, atol=1e-3)
            got[:, engine.manifest.model.eos_token_ids] = -np.inf  # min_new_tokens hides them too
            assert got.argmax(axis=1).tolist() == tokens[length:]


def test_generate_streams_sensible_english(export):
    with gear_trt.load(export("k4v4"), max_tokens=512) as engine:
        chunks = list(engine.stream("What is the capital of France?", max_new_tokens=24))
        text = "".join(chunk.text for chunk in chunks)
        assert "Paris" in text
        assert chunks[-1].finish_reason in {"stop", "length"}


def test_baseline_is_the_same_model(export):
    """The peer of the benchmarks must differ from the engine by its cache only."""
    tokens = np.arange(100, 164)
    with gear_trt.load(export("exact"), max_tokens=128) as engine:
        want = engine.step(tokens[None], all_logits=True)[0]
        baseline = Fp32Engine.open(export("exact"), capacity=128, threads=1)
        np.testing.assert_allclose(baseline.step(tokens), want, atol=1e-3)
        np.testing.assert_allclose(
            baseline.step(np.array([7]))[0], engine.step([[7]])[0], atol=1e-3
        )


def test_four_bits_stay_close_to_the_exact_cache(export):
    """A short form of `gear eval text`; the recorded runs read thousands of tokens."""
    subject = EngineSubject(export("k4v4"), capacity=400, threads=1)
    tokens = np.array(subject.tokenizer.encode(TEXT * 3)[:401])[None]
    (row,) = judge(subject, [subject.cache], tokens, silent, text_name="heat pumps")
    assert row.kl <= 0.005
    assert abs(row.perplexity_ratio - 1) <= 0.02
    assert row.cache_bytes_per_token < row.fp16_bytes_per_token


TEXT = (
    "A heat pump moves heat from a cold place to a warm one. It works like a refrigerator: a fluid "
    "evaporates at low pressure and takes up heat, a compressor raises its pressure and its "
    "temperature, and the fluid condenses and gives the heat away. The work that the compressor "
    "does is small beside the heat that is moved, so one kilowatt hour of electricity brings three "
    "or four of heat into a house. In winter the outdoor unit may ice over; then the cycle runs "
    "backwards for a few minutes and melts the ice. Large pumps heat whole districts with the "
    "waste heat of sewage, data centres and rivers.\n"
)
