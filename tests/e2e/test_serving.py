"""The scheduler on the real model: the same answers alone, together, and short of room."""

from pathlib import Path

import pytest

from gear_trt.runtime.footprint import buffer_bytes, page_bytes
from gear_trt.runtime.model import Model
from gear_trt.runtime.options import GenerationOptions
from gear_trt.serving import Scheduler

pytestmark = pytest.mark.slow

TEXT = (Path(__file__).parents[2] / "docs" / "layout.md").read_text()
PROMPTS = (
    "The capital of France is",
    TEXT[:700] + "\nWhat is a page?",
    TEXT[:700] + "\nWhat is a sink?",
    "def fibonacci(n):",
    TEXT[800:1100],
)
OPTIONS = GenerationOptions(max_new_tokens=16, eos_token_id=(), temperature=0.7, seed=4)


def answers(model, prompts, *, max_cache_bytes, max_batch):
    """Return what each answer's events say of the logits, and the scheduler's last state."""
    with Scheduler(model, max_cache_bytes=max_cache_bytes, max_batch=max_batch) as scheduler:
        tickets = [
            scheduler.submit(model.tokenizer(prompt).input_ids, OPTIONS, logprobs=1)
            for prompt in prompts
        ]
        found = [[(event.token, event.logprob) for event in ticket] for ticket in tickets]
        scheduler.check()
        return found, scheduler.stats()


def test_answers_are_the_same_alone_together_and_short_of_room(export):
    model = Model.open(export("k4v4"), threads=2)
    layers = model.manifest.layers
    alone = [
        answers(model, [prompt], max_cache_bytes=50_000_000, max_batch=1)[0][0]
        for prompt in PROMPTS
    ]
    together, stats = answers(model, PROMPTS, max_cache_bytes=50_000_000, max_batch=8)
    assert together == alone
    assert stats.shared_tokens >= 132
    assert stats.cache_bytes_used == 0
    tokens = max(len(model.tokenizer(prompt).input_ids) for prompt in PROMPTS)
    pages = (tokens + OPTIONS.max_new_tokens) // layers[0].config.chunk + 1
    room = 5 * buffer_bytes(layers) + pages * sum(map(page_bytes, layers))
    short, stats = answers(model, PROMPTS, max_cache_bytes=room, max_batch=5)
    assert short == alone
    assert stats.evictions > 0
