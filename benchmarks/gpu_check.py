"""`make gpu-check`: build, test and measure the CUDA kernels on this machine's GPU, in one call.

Needs nvcc, CMake, and Python with PyTorch for CUDA, Triton, numpy and pydantic; gear_trt itself is
taken from the source tree. Where onnx, onnxruntime-gpu, TensorRT or TensorRT-RTX are installed as
well, whole engines are decoded with them. Without a GPU it says so and does nothing.

What says most comes first, and each row is written when it is there: a step that breaks, or a run
that is ended, costs only what would have come after it. Seconds expected on an H100 beside 16
cores, where it has not run yet:

    build                     60    one architecture; nvcc takes 43 for the attention kernels alone
    case table, plugin        30
    ceiling, decode           30
    compression, prefill      10
    throughput                50    most of it the largest batches of the whole card
    engines                   30    most of it the CPU's
    compute-sanitizer        180    at most, then it is ended
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gear_trt.driver import count_gpus
from gear_trt.errors import ExitStatus

if TYPE_CHECKING:
    from benchmarks.gpu_build import Built
    from benchmarks.gpu_cases import Failure

Row = dict[str, Any]
Step = Callable[[], Iterable[Row]]

_PACKAGES = ("numpy", "pydantic", "torch", "triton")
_ENGINE_PACKAGES = ("onnx", "onnxruntime", "safetensors", "tokenizers", "transformers")


def main() -> int:
    """Run all steps; see `ExitStatus` for what is returned."""
    if not count_gpus():
        print("gpu-check: no NVIDIA GPU on this machine; nothing was built, tested or measured")
        return ExitStatus.OK
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"gpu-check: this Python lacks {', '.join(missing)} ({sys.executable})")
        return ExitStatus.ENVIRONMENT
    return check()


def check() -> int:
    """Build, test, measure, record and inspect; FAILED where anything went wrong."""
    import torch

    from benchmarks.gpu_report import summary

    try:
        built = _build()
    except RuntimeError as error:
        print(error)
        return ExitStatus.FAILED
    failures = _run_tables(built)
    rows: list[Row] = []
    facts = {"gpu": torch.cuda.get_device_name(), "failed_cases": len(failures)}
    path = record(run_steps(_steps(rows), rows, facts))
    print(summary(rows))
    print(f"{len(rows)} rows in {path}")
    is_whole = all(row.get("verdict") != "failed" for row in rows)
    is_clean = _is_clean()
    return ExitStatus.OK if is_clean and is_whole and not failures else ExitStatus.FAILED


def _build() -> Built:
    """Build the libraries for this GPU and have everything here load them."""
    import torch

    from benchmarks.gpu_build import build
    from gear_trt import cuda, native
    from gear_trt.tensorrt import plugin

    major, minor = torch.cuda.get_device_capability()
    _say(f"building for {torch.cuda.get_device_name()} (sm_{major}{minor})")
    built = build(f"{major}{minor}")
    os.environ[cuda.LIBRARY_VARIABLE] = str(built.kernels)
    os.environ[native.LIBRARY_VARIABLE] = str(built.cpu)
    os.environ[plugin.LIBRARY_VARIABLE] = str(built.plugins)
    return built


def _run_tables(built: Built) -> list[Failure]:
    import torch

    from benchmarks import gpu_cases, gpu_plugin

    device = torch.device("cuda", torch.cuda.current_device())
    _say("the case table")
    failures = gpu_cases.run_table(device)
    _say("TensorRT's plugin")
    failures += gpu_plugin.run_table(built.plugins, device)
    for failure in failures:
        print(f"FAILED {failure.row}: {failure.text}")
    return failures


def run_steps(
    steps: Mapping[str, Step], rows: list[Row], facts: Mapping[str, Any]
) -> Iterator[Row]:
    """Yield the rows of all steps, each when it is there; a step that breaks is a row too.

    Args:
        steps: By what they do; each is called after those before it.
        rows: Grows by every row; steps may look at those of earlier ones.
        facts: Fields that all rows get.
    """
    from benchmarks.gpu_report import with_ratio

    for name, step in steps.items():
        _say(name)
        for row in _guarded(name, step):
            rows.append({**with_ratio(row, rows), **facts})
            yield rows[-1]


def _guarded(name: str, step: Step) -> Iterator[Row]:
    import torch

    try:
        torch.cuda.empty_cache()  # what the step before had, for those that do not ask PyTorch
        yield from step()
    except Exception as error:  # one step's fault must not cost the others
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        print(f"FAILED {name}: {text}")
        yield {"kind": "step", "step": name, "verdict": "failed", "text": text}


def _steps(rows: list[Row]) -> dict[str, Step]:
    """What is measured, what says most first; `rows` are those of the steps before."""
    from benchmarks.gpu_ceiling import read_ceiling
    from benchmarks.gpu_compression import compression_rows
    from benchmarks.gpu_decode import decode_rows
    from benchmarks.gpu_prefill import prefill_rows
    from benchmarks.gpu_shapes import COMPRESSION_BATCHES, PREFILL_LENGTHS, SHAPES
    from benchmarks.gpu_throughput import gpu_throughput_rows
    from benchmarks.gpu_timing import this_gpu

    machine = this_gpu()
    return {
        "how fast the GPU reads": lambda: [read_ceiling(machine)],
        "decode": partial(decode_rows, machine, SHAPES),
        "compression": partial(compression_rows, machine, COMPRESSION_BATCHES, rows),
        "prefill": partial(prefill_rows, machine, PREFILL_LENGTHS),
        "throughput of a whole model": partial(gpu_throughput_rows, machine),
        "engines": run_engines,
    }


def _is_clean() -> bool:
    """Inspect with compute-sanitizer, and say what it found."""
    from benchmarks.gpu_sanitizer import inspect

    _say("compute-sanitizer")
    inspections = inspect(dict(os.environ))
    for inspection in inspections:
        print(f"{inspection.tool}: {inspection.verdict} {inspection.text}")
    return all(inspection.verdict != "faults" for inspection in inspections)


def run_engines() -> list[Row]:
    """Decode with every backend that this machine has, print what came of each, return rows."""
    missing = [name for name in _ENGINE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not run: this Python lacks {', '.join(missing)}")
        return []
    from benchmarks import gpu_engines, gpu_serving

    with gpu_engines.random_decoder() as folder:
        outcomes = [
            *gpu_engines.run_backends(folder, gpu_engines.gpu_backends()),
            *gpu_serving.run_backends(folder, gpu_serving.gpu_models()),
        ]
    for outcome in outcomes:
        print(outcome)
    return [outcome.row() for outcome in outcomes]


def record(rows: Iterable[Row]) -> Path:
    """Append the rows to benchmarks/results/gpu.jsonl as they come."""
    from benchmarks.records import append_rows

    return append_rows("gpu", rows)


_STARTED = time.perf_counter()


def _say(text: str) -> None:
    print(f"[{time.perf_counter() - _STARTED:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
