"""Load on a running `gear serve`: many streams at once, for a time, and what their clients see.

    python -m benchmarks.server_load http://127.0.0.1:8000 [--streams N] [--seconds S]

Every stream asks one question after the other, some leave in the middle. A full server is asked
again when it says so. Exit status 1 says that an answer failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import numpy as np

WORDS = ("sky", "sea", "light", "blue", "why", "how", "story", "letter", "night", "house", "tree")
PROMPT_WORDS = (4, 120)
NEW_TOKENS = (8, 96)
LEAVES = 0.1
"""Part of the answers whose client leaves after some of it."""
LOCAL = ("127.0.0.1", "localhost", "::1")
TIMEOUT_S = 600


@dataclass
class Load:
    """What the clients have seen.

    Attributes:
        seconds: From the first request to the last token.
        ended: Answers that ended.
        left: Answers whose client left.
        sent_away: Times that the server was full.
        errors: Answers that failed, each with its reason.
        tokens: Events with text, about one per token.
        first_token_s: From a request to its first event.
        next_token_s: From one event to the next.
    """

    seconds: float = 0.0
    ended: int = 0
    left: int = 0
    sent_away: int = 0
    errors: list[str] = field(default_factory=list)
    tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    next_token_s: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """Return counts and percentiles; times in milliseconds."""
        return {
            "seconds": round(self.seconds, 1),
            "ended": self.ended,
            "left": self.left,
            "sent_away": self.sent_away,
            "errors": self.errors,
            "events_per_second": round(self.tokens / self.seconds, 1),
            "first_token_ms": _percentiles(self.first_token_s),
            "inter_token_ms": _percentiles(self.next_token_s),
        }


def _percentiles(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    values = np.percentile(1000 * np.array(seconds), (50, 90, 99, 100)).round(2).tolist()
    return dict(zip(("p50", "p90", "p99", "max"), values, strict=True))


async def run(
    url: str, *, streams: int, seconds: float, prompt_words: tuple[int, int] = PROMPT_WORDS
) -> Load:
    """Load a server of this machine.

    Args:
        url: Its address.
        streams: How many clients ask at the same time.
        seconds: After which no question is asked any more.
        prompt_words: Fewest and most words of a question.

    Raises:
        ValueError: The server is not on this machine.
    """
    if urlsplit(url).hostname not in LOCAL:
        raise ValueError(f"{url} is not this machine")
    load = Load()
    limits = httpx.Limits(max_connections=streams, max_keepalive_connections=streams)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=TIMEOUT_S) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        start = time.perf_counter()
        questions = [_Questions(model, prompt_words, seed) for seed in range(streams)]
        await asyncio.gather(*(_client(client, one, start + seconds, load) for one in questions))
        load.seconds = time.perf_counter() - start
    return load


class _Questions:
    """Bodies of requests, drawn by a seed, and after how many events the client leaves."""

    def __init__(self, model: str, prompt_words: tuple[int, int], seed: int) -> None:
        self._model = model
        self._prompt_words = prompt_words
        self._random = random.Random(seed)  # noqa: S311 - not for secrets

    def next(self) -> tuple[dict[str, object], int | None]:
        """Return a body, and None for a client that stays."""
        words = self._random.choices(WORDS, k=self._random.randint(*self._prompt_words))
        new_tokens = self._random.randint(*NEW_TOKENS)
        leaves = self._random.random() < LEAVES
        body = {
            "model": self._model,
            "prompt": " ".join(words),
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
        }
        return body, self._random.randint(1, new_tokens) if leaves else None


async def _client(client: httpx.AsyncClient, questions: _Questions, end: float, load: Load) -> None:
    while time.perf_counter() < end:
        body, leaves_after = questions.next()
        try:
            await _ask(client, body, leaves_after, load)
        except (httpx.HTTPError, RuntimeError) as error:
            load.errors.append(f"{type(error).__name__}: {error}")


async def _ask(
    client: httpx.AsyncClient, body: dict[str, object], leaves_after: int | None, load: Load
) -> None:
    before = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            load.sent_away += 1
            await asyncio.sleep(float(response.headers["Retry-After"]))
            return
        response.raise_for_status()
        times = load.first_token_s
        seen = 0
        async for event in _events(response):
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            seen += 1
            now = time.perf_counter()
            times.append(now - before)
            before, times = now, load.next_token_s
            load.tokens += 1
            if seen == leaves_after:
                load.left += 1
                return
    load.ended += 1


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, object]]:
    """Yield the events; a stream without its last line has failed."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if line:
            yield json.loads(line.removeprefix("data: "))
    raise RuntimeError("the stream ended without [DONE]")


def main() -> int:
    """Parse, run, print one JSON object; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    load = asyncio.run(run(arguments.url, streams=arguments.streams, seconds=arguments.seconds))
    print(json.dumps(load.summary(), indent=2))
    return 1 if load.errors else 0


if __name__ == "__main__":
    sys.exit(main())
