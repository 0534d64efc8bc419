"""Facts of this machine and its software that a recorded number needs to be understood."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("gear-trt", "onnxruntime", "numpy", "torch", "transformers", "llama-cpp-python")
_SIMD_FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "neon", "asimd", "asimddp",
    "i8mm", "sve",
)  # fmt: skip
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CPU_FACTS = Path("/proc/cpuinfo")
_MEMORY_FACTS = Path("/proc/meminfo")
_CPU_TIMES = Path("/proc/stat")
_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def environment() -> dict[str, Any]:
    """Return time, commit, machine and versions: the same for every row of a run."""
    in_checkout = _git("ls-files", "--error-unmatch", Path(__file__).name) != ""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") if in_checkout else None,
        "dirty": in_checkout and _git("status", "--porcelain", "--untracked-files=no") != "",
        "cpu": _cpu_fact("model name") or platform.machine(),
        "cpu_flags": _simd_flags(),
        "cores": os.cpu_count(),
        "l2_bytes": cache_bytes(2),
        "l3_bytes": cache_bytes(3),
        "memory_bytes": _memory("MemTotal"),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }


def cache_bytes(level: int) -> int:
    """Size of the cache of a level as the first core sees it; 0 where the system does not say."""
    for folder in sorted(_CACHES.glob("index*")):
        if (folder / "level").read_text().strip() == str(level):
            text = (folder / "size").read_text().strip()
            return int(text[:-1]) * _SIZE_UNITS[text[-1]]
    return 0


def available_memory_bytes() -> int:
    """Memory that a process can take without the system swapping."""
    return _memory("MemAvailable")


class Neighbours:
    """How many cores other processes use, from its creation on.

    On a machine that others use, a call longer than the scheduler's time slice is interrupted and a
    shorter one is not: taking turns does not make up for that.

    Args:
        own_seconds: CPU seconds of everything that this run has started so far.
    """

    def __init__(self, own_seconds: float) -> None:
        self._wall = time.monotonic()
        self._others = _busy_seconds() - own_seconds

    def cores(self, own_seconds: float) -> float:
        """Return the mean number of cores, given the CPU seconds of this run until now."""
        used = _busy_seconds() - own_seconds - self._others
        return max(used / (time.monotonic() - self._wall), 0.0)


def peak_memory_bytes() -> int:
    """Largest resident size of this process; ru_maxrss would count its parent's, before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _busy_seconds() -> float:
    """CPU seconds of the whole machine, the ones that a hypervisor took included."""
    user, nice, system, _idle, _waiting, *other = map(int, _CPU_TIMES.read_text().split()[1:9])
    return (user + nice + system + sum(other)) / os.sysconf("SC_CLK_TCK")


def _memory(name: str) -> int:
    lines = _MEMORY_FACTS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _simd_flags() -> list[str]:
    flags = (_cpu_fact("flags") or _cpu_fact("Features") or "").split()
    return [name for name in _SIMD_FLAGS if name in flags]


def _cpu_fact(name: str) -> str | None:
    for line in _CPU_FACTS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """Output of git beside this file; empty where there is no git or no checkout."""
    try:
        result = subprocess.run(  # noqa: S603 - fixed program and arguments
            ["git", *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parent,
        )
    except FileNotFoundError:
        return ""
    return result.stdout.strip()
