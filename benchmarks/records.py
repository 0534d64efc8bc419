"""Rows of `benchmarks/results/*.jsonl`: what was measured, where, with which versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("gear-trt", "onnxruntime", "numpy", "torch", "transformers")


def environment() -> dict[str, Any]:
    """Return commit, machine and versions, the same for every row of a run."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def append_rows(name: str, rows: list[dict[str, Any]]) -> Path:
    """Append rows to `results/<name>.jsonl`, each with the environment."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    shared = environment()
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps({**row, **shared}) + "\n")
    return path


def _version(package: str) -> str | None:
    """None where a package is not installed: the GPU check runs from the source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    result = subprocess.run(  # noqa: S603 - fixed program and arguments
        ["git", *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return result.stdout.strip()


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
