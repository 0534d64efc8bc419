"""Times of calls on a device: CUDA graphs and a cold cache on a GPU, a clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import median, quantiles

import torch

Calls = Sequence[Callable[[], object]]
"""The same work on different memory, in turn, so that none of it lies in a cache."""

_WARM_UPS = 3
_REPEATS = 25


@dataclass(frozen=True)
class Timing:
    """Time of one call over several rounds, µs: median, first and last decile."""

    median_us: float
    low_us: float
    high_us: float

    @classmethod
    def of(cls, times_us: Sequence[float]) -> Timing:
        """Summarize one value per round."""
        deciles = quantiles(times_us, n=10, method="inclusive")
        return cls(median(times_us), deciles[0], deciles[-1])

    def fields(self) -> dict[str, float]:
        """As fields of a row."""
        return {"us": self.median_us, "us_p10": self.low_us, "us_p90": self.high_us}


@dataclass(frozen=True)
class Machine:
    """Where calls run and how they are timed.

    Attributes:
        device: The device.
        name: What it is called.
        cache_bytes: Its last cache; calls rotate over more than twice as much memory.
        time: Times calls.
    """

    device: torch.device
    name: str
    cache_bytes: int
    time: Callable[[Calls], Timing]

    def copies(self, bytes_per_call: int) -> int:
        """How many copies of a call's memory make its cache cold: more than twice the cache."""
        return 2 * self.cache_bytes // bytes_per_call + 1


def this_gpu() -> Machine:
    """The current CUDA device."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    device = torch.device("cuda", torch.cuda.current_device())
    return Machine(device, properties.name, properties.L2_cache_size, time_graph)


def time_graph(calls: Calls) -> Timing:
    """Capture all calls in one CUDA graph, replay it, and return the time of one call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):  # the stream of the warm-up: it has its workspace
        for call in calls:
            call()
    for _ in range(_WARM_UPS):
        graph.replay()
    times = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / len(calls))
    return Timing.of(times)


def time_clock(calls: Calls) -> Timing:
    """Wall time of one call, for devices without graphs."""
    times = []
    for _ in range(_WARM_UPS):
        started = time.perf_counter()
        for call in calls:
            call()
        times.append(1e6 * (time.perf_counter() - started) / len(calls))
    return Timing.of(times)


def time_steps(
    device: torch.device,
    step: Callable[[], object],
    rewind: Callable[[], object],
    count: int,
    *,
    is_replayable: bool,
) -> list[float]:
    """Milliseconds of each of `count` steps in a row, which change what the next one finds.

    On a GPU they are CUDA graphs, replayed back to back; each graph has run before it is timed.

    Args:
        device: Where.
        step: The work.
        rewind: Go back to before the first step.
        count: Steps.
        is_replayable: Whether one captured step is right for them all.
    """
    if device.type == "cuda":
        return _time_captured(step, rewind, 1 if is_replayable else count, count)
    rewind()
    times = [time.perf_counter()]
    for _ in range(count):
        step()
        times.append(time.perf_counter())
    return [1e3 * (end - start) for start, end in pairwise(times)]


def _time_captured(
    step: Callable[[], object], rewind: Callable[[], object], num_graphs: int, count: int
) -> list[float]:
    side = _capture_stream()
    rewind()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    rewind()
    pool = torch.cuda.graph_pool_handle()
    graphs = []
    for _ in range(num_graphs):
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1], pool=pool, stream=side):
            step()
    for graph in graphs:
        graph.replay()
    rewind()
    replays = graphs * (count // num_graphs)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for graph, event in zip(replays, events[1:], strict=True):
        graph.replay()
        event.record()
    events[-1].synchronize()
    return [start.elapsed_time(end) for start, end in pairwise(events)]


@cache
def _capture_stream() -> torch.cuda.Stream:
    """One for all: libraries keep a workspace for every stream that they have seen."""
    return torch.cuda.Stream()
