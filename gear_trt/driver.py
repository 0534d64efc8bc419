"""The NVIDIA driver, asked with the standard library alone."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

KERNEL_MODULE = Path("/proc/driver/nvidia/version")
"""Where Linux says which version of the driver is loaded."""

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""Values of the driver's `CUdevice_attribute`."""
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As the driver names it.
        capability: Major and minor compute capability.
        memory_bytes: All of its memory.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    @property
    def compute_capability(self) -> str:
        """As text, for instance `8.6`."""
        return "{}.{}".format(*self.capability)


def count_gpus() -> int:
    """Return the number of GPUs that the driver sees; 0 where there is no driver."""
    driver = _driver()
    return 0 if driver is None else _count(driver)


def find_gpus() -> list[Gpu]:
    """Return the GPUs that the driver sees; none where there is no driver."""
    driver = _driver()
    return [] if driver is None else [_gpu(driver, index) for index in range(_count(driver))]


def compute_capabilities() -> tuple[str, ...]:
    """Return the compute capability of every GPU that the driver sees, for instance `8.6`."""
    return tuple(gpu.compute_capability for gpu in find_gpus())


def cuda_version() -> str | None:
    """Return the newest CUDA version that the driver can run, None where there is no driver."""
    driver = _driver()
    number = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def driver_version() -> str | None:
    """Return the version of the driver that is loaded, None where Linux does not say."""
    try:
        text = KERNEL_MODULE.read_text()
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", text)
    return found[1] if found else None


def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver


def _count(driver: ctypes.CDLL) -> int:
    count = ctypes.c_int()
    return 0 if driver.cuDeviceGetCount(ctypes.byref(count)) else count.value


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, name, memory = (
        ctypes.c_int(),
        ctypes.create_string_buffer(_NAME_BYTES),
        ctypes.c_size_t(),
    )
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = [
        _attribute(driver, which, device) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    ]
    return Gpu(name.value.decode(), (capability[0], capability[1]), memory.value)


def _attribute(driver: ctypes.CDLL, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value
