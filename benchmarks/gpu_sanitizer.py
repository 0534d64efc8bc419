"""compute-sanitizer on a few small rows of the case table."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_build import REPOSITORY

TOOLS = ("memcheck", "racecheck")
ROWS = (
    "compress-bits-3-2",
    "compress-rank-2-factors-4",
    "compress-outliers-4-dim-16",
    "attention-bits-4-4-new-1",
    "attention-rank-2-factors-8-new-40",
    "attention-outliers-2-group-5-new-1",
    "attention-batch-ragged",
    "attention-long-bits-4-4-new-40",
    "attention-long-bfloat16-bits-4-4-new-40",
    "steps-k4v4-2",
)
"""Both kernels, decode and prefill, appended and compressed pages; a tool takes seconds a row."""

_ONE_ALLOCATION_PER_TENSOR = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Else every tensor lies in a large block of PyTorch's, and writing past its end is allowed."""

_FOUND = 99
_TIMEOUT_SECONDS = 90
_UNSUPPORTED = ("Device not supported", "not supported on this")


@dataclass(frozen=True)
class Inspection:
    """What a tool said: `clean`, `faults`, or `not run` with the reason."""

    tool: str
    verdict: str
    text: str


def inspect(environment: dict[str, str]) -> list[Inspection]:
    """Run every tool on the rows; `environment` names the library to the child process."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).is_file():
        return [Inspection(tool, "not run", "no compute-sanitizer here") for tool in TOOLS]
    return [_run(program, tool, environment) for tool in TOOLS]


def _run(program: str, tool: str, environment: dict[str, str]) -> Inspection:
    options = ["--tool", tool, "--error-exitcode", str(_FOUND)]
    command = [program, *options, sys.executable, "-m", "benchmarks.gpu_cases", *ROWS]
    try:
        result = subprocess.run(  # noqa: S603 - fixed program and arguments
            command,
            cwd=REPOSITORY,
            env={**environment, **_ONE_ALLOCATION_PER_TENSOR},
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Inspection(tool, "not run", f"took more than {_TIMEOUT_SECONDS} s")
    return judged(tool, result.returncode, result.stdout + result.stderr)


def judged(tool: str, status: int, output: str) -> Inspection:
    """Turn exit status and output of a tool into a verdict."""
    if any(words in output for words in _UNSUPPORTED):
        return Inspection(tool, "not run", "the tool does not support this machine")
    tail = "\n".join(output.splitlines()[-25:])
    return Inspection(tool, "faults" if status else "clean", tail if status else "")
