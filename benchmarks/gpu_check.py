"""`make gpu-check`: build, test and measure the CUDA kernels on this machine's GPU, in one call.

Needs nvcc, CMake, and Python with PyTorch for CUDA, Triton, numpy and pydantic; gear_trt itself is
taken from the source tree. Where onnx, onnxruntime-gpu, TensorRT or TensorRT-RTX are installed as
well, whole engines are decoded with them. Without a GPU it says so and does nothing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gear_trt.driver import count_gpus
from gear_trt.errors import ExitStatus

if TYPE_CHECKING:
    from benchmarks.gpu_cases import Failure

T = TypeVar("T")

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
    """Build, test, measure, record, and inspect; FAILED where anything failed.

    What takes longest and tells least comes last, and no step's failure keeps the next ones from
    running: a machine with a GPU may be there for minutes only.
    """
    import torch

    from benchmarks import gpu_plugin
    from benchmarks.gpu_build import build
    from benchmarks.gpu_cases import run_table
    from benchmarks.gpu_sanitizer import inspect
    from gear_trt import cuda, native
    from gear_trt.tensorrt import plugin

    major, minor = torch.cuda.get_device_capability()
    _say(f"building for {torch.cuda.get_device_name()} (sm_{major}{minor})")
    try:
        built = build(f"{major}{minor}")
    except RuntimeError as error:
        print(error)
        return ExitStatus.FAILED
    os.environ[cuda.LIBRARY_VARIABLE] = str(built.kernels)
    os.environ[native.LIBRARY_VARIABLE] = str(built.cpu)
    os.environ[plugin.LIBRARY_VARIABLE] = str(built.plugins)

    device = torch.device("cuda", torch.cuda.current_device())
    failures: list[Failure] = []
    _say("the case table")
    is_complete = collect(lambda: run_table(device), failures)
    _say("TensorRT's plugin")
    is_complete &= collect(lambda: gpu_plugin.run_table(built.plugins, device), failures)
    for failure in failures:
        print(f"FAILED {failure.row}: {failure.text}")
    rows: list[dict[str, Any]] = []
    is_complete &= measure(rows)
    _say("engines")
    engines: list[dict[str, Any]] = []
    is_complete &= collect(run_engines, engines)
    failed = len(failures)
    marked = [{**row, "failed_cases": failed} for row in (*rows, *engines)]
    print(f"{len(marked)} rows in {record(marked)}")
    is_clean = is_complete and all(row["verdict"] != "failed" for row in engines)
    _say("compute-sanitizer")
    for inspection in inspect(dict(os.environ)):
        print(f"{inspection.tool}: {inspection.verdict} {inspection.text}")
        is_clean &= inspection.verdict != "faults"
    return ExitStatus.OK if is_clean and not failures else ExitStatus.FAILED


def run_engines() -> list[dict[str, Any]]:
    """Decode with every backend that this machine has, print what came of each, return rows."""
    missing = [name for name in _ENGINE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not run: this Python lacks {', '.join(missing)}")
        return []
    from benchmarks import gpu_engines

    with gpu_engines.random_decoder() as folder:
        outcomes = gpu_engines.run_backends(folder, gpu_engines.gpu_backends())
    for outcome in outcomes:
        print(outcome)
    return [outcome.row() for outcome in outcomes]


def measure(rows: list[dict[str, Any]]) -> bool:
    """Measure all on the GPU, add the rows, print a summary; return whether no step failed."""
    from benchmarks.gpu_ceiling import read_ceiling
    from benchmarks.gpu_compression import compression_rows
    from benchmarks.gpu_decode import decode_rows
    from benchmarks.gpu_prefill import prefill_rows
    from benchmarks.gpu_report import summary, with_ratios
    from benchmarks.gpu_shapes import COMPRESSION_BATCHES, PREFILL_LENGTHS, SHAPES
    from benchmarks.gpu_timing import this_gpu

    machine = this_gpu()
    steps: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
        "how fast the GPU reads": lambda: [read_ceiling(machine)],
        "decode": lambda: decode_rows(machine, SHAPES),
        "compression": lambda: compression_rows(machine, COMPRESSION_BATCHES, list(rows)),
        "prefill": lambda: prefill_rows(machine, PREFILL_LENGTHS),
    }
    is_complete = True
    for name, step in steps.items():
        _say(name)
        is_complete &= collect(step, rows)
    rows[:] = [{**row, "gpu": machine.name} for row in with_ratios(rows)]
    print(summary(rows))
    return is_complete


def collect(step: Callable[[], Iterable[T]], results: list[T]) -> bool:
    """Add what a step gives as it comes; where it fails, print why and return False."""
    try:
        results.extend(step())
    except Exception:  # what came until here, and the other steps, are worth having
        traceback.print_exc()
        return False
    return True


def record(rows: list[dict[str, Any]]) -> Path:
    """Append the rows to benchmarks/results/gpu.jsonl."""
    from benchmarks.records import append_rows

    return append_rows("gpu", rows)


_STARTED = time.perf_counter()


def _say(text: str) -> None:
    print(f"[{time.perf_counter() - _STARTED:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
