"""Decode with one cache in this process and print what it took, as one JSON object.

A process of its own per cache, so that peak memory is that cache's.

    python -m benchmarks.decode ENGINE --cache gear|fp32 [--context 512] [--tokens 64]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gear_trt
from benchmarks.baseline import Fp32Engine

SLICE = 128
"""Prompt tokens per prefill call: bounds the memory of their logits."""


@dataclass(frozen=True)
class Decoder:
    """One way to decode.

    Attributes:
        step: Takes [S] tokens.
        cache_bytes: Returns the bytes that the cache takes now.
    """

    step: Callable[[NDArray[np.int64]], object]
    cache_bytes: Callable[[], int]


def gear_decoder(engine: Path, capacity: int, threads: int) -> Decoder:
    """Decode over the compressed cache."""
    llm = gear_trt.load(engine, max_tokens=capacity, threads=threads)
    return Decoder(lambda tokens: llm.step(tokens[None]), lambda: llm.cache.nbytes)


def fp32_decoder(engine: Path, capacity: int, threads: int) -> Decoder:
    """Decode over ONNX Runtime's FP32 cache."""
    llm = Fp32Engine(engine, capacity=capacity, threads=threads)
    return Decoder(llm.step, lambda: llm.cache_bytes)


def measure(
    step: Callable[[NDArray[np.int64]], object], context: int, tokens: int
) -> dict[str, float]:
    """Prefill `context` tokens, decode `tokens` more, and return rates in tokens per second."""
    prompt = np.random.default_rng(0).integers(10, 1000, context)
    started = time.perf_counter()
    for first in range(0, context, SLICE):
        step(prompt[first : first + SLICE])
    prefill_seconds = time.perf_counter() - started
    step_seconds = []
    for token in range(tokens):
        started = time.perf_counter()
        step(np.array([10 + token]))
        step_seconds.append(time.perf_counter() - started)
    return {
        "prefill_tokens_per_second": context / prefill_seconds,
        "decode_tokens_per_second": 1 / statistics.median(step_seconds),
    }


def peak_memory_bytes() -> int:
    """Largest resident size of this process; ru_maxrss would count its parent's, before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--cache", choices=("gear", "fp32"), required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    make = gear_decoder if arguments.cache == "gear" else fp32_decoder
    capacity = arguments.context + arguments.tokens
    decoder = make(arguments.engine, capacity, arguments.threads)
    row = {
        "cache": arguments.cache,
        "context": arguments.context,
        "threads": arguments.threads,
        **measure(decoder.step, arguments.context, arguments.tokens),
        "cache_bytes": decoder.cache_bytes(),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    json.dump(row, sys.stdout)


if __name__ == "__main__":
    main()
