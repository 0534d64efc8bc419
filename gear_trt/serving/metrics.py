"""Prometheus metrics of one server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gear_trt.serving.scheduler import SchedulerStats
from gear_trt.serving.ticket import TokenEvent

_TTFT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Everything that `/metrics` shows.

    Args:
        stats: Returns what the scheduler says of itself, at every scrape.
    """

    def __init__(self, stats: Callable[[], SchedulerStats]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_SchedulerCollector(stats))
        self._requests = Counter(
            "gear_requests",
            "Requests answered, by path and HTTP status",
            ["path", "status"],
            registry=self._registry,
        )
        self._answers = Counter(
            "gear_answers",
            "Answers ended: stop, length, timeout, cancelled (the client left) or error",
            ["finish_reason"],
            registry=self._registry,
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

    def watch(self, since: float) -> AnswerWatch:
        """Time one answer.

        Args:
            since: When its request came, by `time.perf_counter`.
        """
        return AnswerWatch(self._answers, self._first_token, self._next_token, since)


class AnswerWatch:
    """Times the tokens of one answer; made by `Metrics.watch`."""

    def __init__(
        self,
        answers: Counter,
        first_token: Histogram,
        next_token: Histogram,
        since: float,
    ) -> None:
        self._answers = answers
        self._next_latency = first_token
        self._latency_after = next_token
        self._since = since

    def saw(self, event: TokenEvent) -> None:
        """Record one event."""
        if event.token is None:
            return
        now = time.perf_counter()
        self._next_latency.observe(now - self._since)
        self._since, self._next_latency = now, self._latency_after

    def ended(self, finish_reason: str) -> None:
        """Record the end."""
        self._answers.labels(finish_reason).inc()


class _SchedulerCollector(Collector):
    """What the scheduler says of itself, read at every scrape."""

    def __init__(self, stats: Callable[[], SchedulerStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        used = stats.cache_bytes_used
        for name, meaning, value in (
            ("gear_running", "Answers being generated", stats.running),
            ("gear_waiting", "Answers waiting for room", stats.waiting),
            ("gear_cache_used_bytes", "Bytes of the cache that running answers hold", used),
            (
                "gear_cache_kept_bytes",
                "Bytes of pages kept for later requests, given up when room is needed",
                stats.cache_bytes_cached,
            ),
            ("gear_cache_total_bytes", "Bytes of the whole cache", stats.cache_bytes_total),
            (
                "gear_cache_fp16_bytes",
                "Bytes that an FP16 cache without sharing takes for the running answers",
                stats.fp16_bytes,
            ),
            (
                "gear_cache_compression_ratio",
                "gear_cache_fp16_bytes over gear_cache_used_bytes, 0 where nothing runs",
                stats.fp16_bytes / used if used else 0.0,
            ),
        ):
            yield GaugeMetricFamily(name, meaning, value=value)
        for name, meaning, value in (
            ("gear_prompt_tokens", "Tokens of prompts that began to run", stats.prompt_tokens),
            (
                "gear_prefix_hit_tokens",
                "Tokens of prompts whose pages were there already",
                stats.shared_tokens,
            ),
            ("gear_generated_tokens", "Tokens generated", stats.generated_tokens),
            (
                "gear_preemptions",
                "Times that an answer gave way for lack of pages",
                stats.preemptions,
            ),
            ("gear_evictions", "Kept pages that were given up", stats.evictions),
        ):
            yield CounterMetricFamily(name, meaning, value=value)
