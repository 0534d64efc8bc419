"""The NVIDIA driver, asked with the standard library alone."""

from __future__ import annotations

import ctypes


def count_gpus() -> int:
    """Return the number of GPUs that the driver sees; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value
