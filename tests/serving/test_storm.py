"""Many short requests of which readers abandon a part: nothing leaks, no answer is wrong."""

import os
import random

from gear_trt.runtime.options import GenerationOptions
from gear_trt.serving import Scheduler

REQUESTS = int(os.environ.get("GEAR_STORM_REQUESTS", "2000"))
"""The table of docs/reliability.md is from a run with 10,000."""
QUEUE = 48
PROMPTS = 12
MEGABYTE = 1 << 20


def test_random_cancels_leak_nothing(model):
    rng = random.Random(7)  # noqa: S311 - repeatable on purpose
    prompts = [[rng.randrange(256) for _ in range(rng.randint(1, 150))] for _ in range(PROMPTS)]
    options = GenerationOptions(max_new_tokens=8, eos_token_id=())
    with Scheduler(model, max_cache_bytes=2 * MEGABYTE, max_batch=16) as scheduler:
        want = [_tokens(scheduler.submit(prompt, options)) for prompt in prompts]
        cancelled = 0
        for _ in range(0, REQUESTS, QUEUE):
            chosen = [rng.randrange(PROMPTS) for _ in range(QUEUE)]
            tickets = [
                scheduler.submit(prompts[i], options, priority=rng.randint(-1, 1)) for i in chosen
            ]
            rng.shuffle(order := list(zip(chosen, tickets, strict=True)))
            for prompt, ticket in order:
                if rng.random() < 0.4:
                    ticket.cancel()
                    cancelled += 1
                    seen = _tokens(ticket)
                    assert seen == want[prompt][: len(seen)]
                else:
                    assert _tokens(ticket) == want[prompt]
        scheduler.check()
        stats = scheduler.stats()
    assert cancelled > REQUESTS // 4
    assert stats.running == stats.waiting == 0
    assert stats.cache_bytes_used == 0


def _tokens(ticket):
    return [event.token for event in ticket if event.token is not None]
