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
from pathlib import Path
from typing import Any

from gear_trt.driver import count_gpus
from gear_trt.errors import ExitStatus

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
    """Build, test, inspect, measure, and record; FAILED where a test failed."""
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

    _say("the case table")
    device = torch.device("cuda", torch.cuda.current_device())
    failures = run_table(device)
    _say("TensorRT's plugin")
    failures += gpu_plugin.run_table(built.plugins, device)
    for failure in failures:
        print(f"FAILED {failure.row}: {failure.text}")
    _say("engines")
    engines = run_engines()
    is_clean = all(row["verdict"] != "failed" for row in engines)
    _say("compute-sanitizer")
    inspections = inspect(dict(os.environ))
    for inspection in inspections:
        print(f"{inspection.tool}: {inspection.verdict} {inspection.text}")
    is_clean &= all(inspection.verdict != "faults" for inspection in inspections)
    rows = measure() if not failures else []
    if rows:
        print(f"{len(rows)} rows in {record([*rows, *engines])}")
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


def measure() -> list[dict[str, Any]]:
    """Measure everything on the GPU and print the summary."""
    from benchmarks.gpu_ceiling import read_ceiling
    from benchmarks.gpu_compression import compression_rows
    from benchmarks.gpu_decode import decode_rows
    from benchmarks.gpu_prefill import prefill_rows
    from benchmarks.gpu_report import summary, with_ratios
    from benchmarks.gpu_shapes import COMPRESSION_BATCHES, PREFILL_LENGTHS, SHAPES
    from benchmarks.gpu_timing import this_gpu

    machine = this_gpu()
    _say("how fast the GPU reads")
    rows = [read_ceiling(machine)]
    _say("decode")
    rows += decode_rows(machine, SHAPES)
    _say("compression")
    rows += compression_rows(machine, COMPRESSION_BATCHES, rows)
    _say("prefill")
    rows += prefill_rows(machine, PREFILL_LENGTHS)
    rows = [{**row, "gpu": machine.name} for row in with_ratios(rows)]
    print(summary(rows))
    return rows


def record(rows: list[dict[str, Any]]) -> Path:
    """Append the rows to benchmarks/results/gpu.jsonl."""
    from benchmarks.records import append_rows

    return append_rows("gpu", rows)


_STARTED = time.perf_counter()


def _say(text: str) -> None:
    print(f"[{time.perf_counter() - _STARTED:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
