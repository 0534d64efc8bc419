"""Build the libraries from the source tree, for the GPU of this machine alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]
BUILD_FOLDER = REPOSITORY / "build" / "gpu-check"


class Built(NamedTuple):
    """Paths of `libgear_cuda.so`, `libgear_trt_plugins.so` and `libgear.so`."""

    kernels: Path
    plugins: Path
    cpu: Path


def build(architecture: str) -> Built:
    """Configure and compile.

    Args:
        architecture: As CMake names it, for instance `90`.

    Raises:
        RuntimeError: CMake or the compiler failed; the message ends with what they said.
    """
    _run(
        _cmake(), "-S", str(REPOSITORY / "plugins"), "-B", str(BUILD_FOLDER),
        "-DCMAKE_BUILD_TYPE=Release", "-DGEAR_CUDA=ON",
        f"-DCMAKE_CUDA_ARCHITECTURES={architecture}",
    )  # fmt: skip
    jobs = str(os.cpu_count() or 1)
    targets = ("--target", "gear_cuda", "gear_trt_plugins", "gear")
    _run(_cmake(), "--build", str(BUILD_FOLDER), *targets, "--parallel", jobs)
    folder = BUILD_FOLDER / "cuda"
    return Built(
        folder / "libgear_cuda.so", folder / "libgear_trt_plugins.so", BUILD_FOLDER / "libgear.so"
    )


def _cmake() -> str:
    """That of this Python's packages, else that of PATH."""
    return shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"


def _run(*words: str) -> None:
    result = subprocess.run(  # noqa: S603 - fixed programs
        words, capture_output=True, text=True, check=False
    )
    if result.returncode:
        lines = (result.stdout + result.stderr).splitlines()
        raise RuntimeError("\n".join([f"{' '.join(words)} failed:", *lines[-40:]]))
