"""Taking turns, and what is said of the times."""

import subprocess
import sys
import time

import pytest

from gear_trt.bench import rounds
from gear_trt.bench.bandwidth import stream_read_bandwidth
from gear_trt.bench.machine import Neighbours, environment
from gear_trt.bench.rounds import WARM_UP_ROUNDS, Timed, measure
from gear_trt.bench.statistics import Summary, median_difference, speedup


def test_summary():
    assert Summary.of([5.0, 1.0, 2.0, 3.0, 100.0]) == Summary(3.0, 1.0, 2.0, 5)


def test_speedup_is_taken_per_round():
    """A machine that gets ten times slower on the way slows both."""
    assert speedup([1.0, 10.0, 10.0], [3.0, 30.0, 30.0]) == 3.0
    assert speedup([1.0, 10.0, 1.0], [4.0, 20.0, 3.0]) == 3.0


def test_difference_is_taken_per_round():
    assert median_difference([5.0, 50.0, 7.0], [4.0, 40.0, 5.0]) == 2.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a call moves it."""
    now = [0.0]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])
    return now


def test_candidates_take_turns(clock):
    calls = []

    def candidate(name, copies):
        return Timed(name, lambda copy: calls.append((name, copy)), copies)

    measure([candidate("a", 2), candidate("b", 1)], rounds=1)
    first, second = [("a", 0), ("a", 1)], [("b", 0)]
    assert calls == [*first, *second, *second, *first, *first, *second]


def test_times_are_medians_of_a_round_after_the_warm_up(clock):
    seconds = iter([9.0] * 3 * WARM_UP_ROUNDS + [1.0, 5.0, 2.0, 3.0, 3.0, 4.0])

    def call(copy):
        clock[0] += next(seconds)

    advances = []
    times = measure([Timed("a", call, 3)], rounds=2, advance=lambda: advances.append(1))
    assert times == {"a": [2.0, 3.0]}
    assert len(advances) == WARM_UP_ROUNDS + 2


@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_is_plausible(threads):
    assert 1e8 < stream_read_bandwidth(threads) < 1e13


def test_neighbours_are_what_is_not_our_own():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        others = Neighbours(time.process_time())
        started = time.monotonic()
        while time.monotonic() - started < 0.5:
            pass
        own = time.process_time()
        cores = others.cores(own)
        assert cores > 0.1, "the process beside takes CPU time"
        assert others.cores(own + 1e6) == 0, "what is our own does not count"
        busy.kill()


def test_environment_names_machine_and_versions():
    row = environment()
    assert row["cpu"]
    assert row["cores"] >= 1
    assert row["memory_bytes"] > 1 << 28
    assert row["versions"]["onnxruntime"]
    assert {"time", "commit", "dirty", "cpu_flags", "l2_bytes", "l3_bytes", "python"} <= set(row)
