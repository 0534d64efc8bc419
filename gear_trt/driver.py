"""The NVIDIA driver, asked with the standard library alone."""

from __future__ import annotations

import ctypes

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""Values of the driver's `CUdevice_attribute`."""


def count_gpus() -> int:
    """Return the number of GPUs that the driver sees; 0 where there is no driver."""
    driver = _driver()
    count = ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def compute_capabilities() -> tuple[str, ...]:
    """Return the compute capability of every GPU that the driver sees, for instance `8.6`."""
    return tuple(
        f"{_attribute(_CAPABILITY_MAJOR, gpu)}.{_attribute(_CAPABILITY_MINOR, gpu)}"
        for gpu in range(count_gpus())
    )


def _attribute(attribute: int, gpu: int) -> int:
    value = ctypes.c_int()
    driver = _driver()
    if driver is None or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, gpu):
        raise OSError(f"the NVIDIA driver says nothing of GPU {gpu}")
    return value.value


def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver
