"""Decode with one cache in this process and print what it took, as one JSON object.

A process of its own per cache, so that peak memory is that cache's.

    python -m benchmarks.decode ENGINE --cache gear|fp32 [--context 512] [--tokens 64]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gear_trt
from benchmarks.baseline import Fp32Engine
from gear_trt.runtime.footprint import page_bytes_per_token

SLICE = 128
"""Prompt tokens per prefill call: bounds the memory of their logits."""


def gear_stepper(engine: Path, capacity: int, threads: int) -> tuple[Callable[..., object], float]:
    """Return a step function over the compressed cache, and its bytes per compressed token."""
    llm = gear_trt.load(engine, max_tokens=capacity, threads=threads)
    return lambda tokens: llm.step(tokens[None]), page_bytes_per_token(llm.manifest.layers)


def fp32_stepper(engine: Path, capacity: int, threads: int) -> tuple[Callable[..., object], float]:
    """Return a step function over ONNX Runtime's FP32 cache, and its bytes per token."""
    llm = Fp32Engine(engine, capacity=capacity, threads=threads)
    return llm.step, llm.bytes_per_token


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--cache", choices=("gear", "fp32"), required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    make = gear_stepper if arguments.cache == "gear" else fp32_stepper
    step, bytes_per_token = make(
        arguments.engine, arguments.context + arguments.tokens, arguments.threads
    )
    row = {
        "cache": arguments.cache,
        "context": arguments.context,
        "threads": arguments.threads,
        **measure(step, arguments.context, arguments.tokens),
        "cache_bytes_per_token": bytes_per_token,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    json.dump(row, sys.stdout)


if __name__ == "__main__":
    main()
