"""Prometheus metrics of one server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gear_trt.serving.contract import Event, Stats

_TTFT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Everything that `/metrics` shows.

    Args:
        stats: Returns what the generator says of itself, at every scrape.
    """

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Generator(stats))
        self._requests = Counter(
            "gear_requests",
            "Requests answered, by path and HTTP status",
            ["path", "status"],
            registry=self._registry,
        )
        self._answers = Counter(
            "gear_answers",
            "Answers ended: stop, length, cancelled (the client left) or error",
            ["finish_reason"],
            registry=self._registry,
        )
        self._prompt_tokens = Counter(
            "gear_prompt_tokens", "Tokens of prompts accepted", registry=self._registry
        )
        self._generated_tokens = Counter(
            "gear_generated_tokens", "Tokens generated", registry=self._registry
        )
        self._first_token = Histogram(
            "gear_time_to_first_token_seconds",
            "From the request to the first token of an answer",
            buckets=_TTFT_SECONDS,
            registry=self._registry,
        )
        self._next_token = Histogram(
            "gear_inter_token_latency_seconds",
            "From one token of an answer to the next",
            buckets=_TOKEN_SECONDS,
            registry=self._registry,
        )

    def render(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def count_request(self, path: str, status: int) -> None:
        """Count a request that was answered.

        Args:
            path: The route's, so that there are few.
            status: Of HTTP.
        """
        self._requests.labels(path, str(status)).inc()

    def count_prompt(self, tokens: int) -> None:
        """Count an accepted prompt."""
        self._prompt_tokens.inc(tokens)

    def watch(self, since: float) -> AnswerWatch:
        """Time one answer.

        Args:
            since: When its request came, by `time.perf_counter`.
        """
        return AnswerWatch(
            self._answers, self._generated_tokens, self._first_token, self._next_token, since
        )


class AnswerWatch:
    """Times the tokens of one answer; made by `Metrics.watch`."""

    def __init__(
        self,
        answers: Counter,
        generated_tokens: Counter,
        first_token: Histogram,
        next_token: Histogram,
        since: float,
    ) -> None:
        self._answers = answers
        self._generated_tokens = generated_tokens
        self._next_latency = first_token
        self._latency_after = next_token
        self._since = since

    def saw(self, event: Event) -> None:
        """Record one event."""
        if event.token is None:
            return
        now = time.perf_counter()
        self._next_latency.observe(now - self._since)
        self._since, self._next_latency = now, self._latency_after
        self._generated_tokens.inc()

    def ended(self, finish_reason: str) -> None:
        """Record the end."""
        self._answers.labels(finish_reason).inc()


class _Generator(Collector):
    """What the generator says of itself, read at every scrape."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        ratio = stats.fp16_bytes / stats.cache_bytes if stats.cache_bytes else 0.0
        for name, meaning, value in (
            ("gear_running", "Answers being generated", stats.running),
            ("gear_waiting", "Answers waiting for a place", stats.waiting),
            ("gear_cache_bytes", "Bytes of the cache in use", stats.cache_bytes),
            ("gear_cache_fp16_bytes", "Bytes that FP16 takes for its tokens", stats.fp16_bytes),
            ("gear_cache_compression_ratio", "FP16 bytes per byte in use", ratio),
        ):
            yield GaugeMetricFamily(name, meaning, value=value)
        yield CounterMetricFamily(
            "gear_prefix_hit_tokens",
            "Prompt tokens found in the cache of earlier requests",
            value=stats.prefix_hit_tokens,
        )
