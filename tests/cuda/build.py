"""Builds of plugins/ that only tests need."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
CUDA_BUILD = ROOT / "build" / "cuda"
"""Where `make cuda` builds."""

_EMULATED_BUILD = ROOT / "build" / "emulated"


@cache
def emulated_build() -> Path:
    """Build the emulated libraries and the emulator's tests; return their folder."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}") or shutil.which("cmake")
    if cmake is None:
        pytest.skip("the emulated GPU needs cmake: pip install cmake")
    options = ["-DGEAR_EMULATED_GPU=ON", "-DGEAR_CUDA=OFF", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"]
    targets = [
        "--target",
        "gear_emulated",
        "gear_watched",
        "gear_emulated_trt_plugins",
        "emulator_test",
    ]
    with FileLock(_EMULATED_BUILD.with_suffix(".lock")):  # other test workers build here too
        for command in (
            [cmake, "-S", ROOT / "plugins", "-B", _EMULATED_BUILD, *options],
            [cmake, "--build", _EMULATED_BUILD, "--parallel", "2", *targets],
        ):
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stdout + run.stderr
    return _EMULATED_BUILD / "cuda" / "emulator"
