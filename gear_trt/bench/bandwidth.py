"""How fast this machine streams memory: the ruler beside every row's bytes per second."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gear_trt.bench.machine import cache_bytes

PASSES = 7
MINIMUM_BYTES = 256 << 20
MAXIMUM_BYTES = 1 << 30
_ABSENT_BYTE = 1


def stream_read_bandwidth(threads: int) -> float:
    """Measure bytes per second of reading an array larger than the caches, best of `PASSES`.

    libc's `memchr` looks for a byte that is not there: a sequential read at full vector width that
    writes nothing. ctypes lets go of the interpreter's lock, so threads read at the same time.

    Args:
        threads: Threads that read a part each.
    """
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    memchr.restype = ctypes.c_void_p
    size = min(max(2 * cache_bytes(3), MINIMUM_BYTES), MAXIMUM_BYTES) // threads
    memory = np.empty(size * threads, np.uint8)
    memory.fill(0)  # numpy.zeros would map one page of zeros many times

    def read(part: int) -> None:
        memchr(memory.ctypes.data + part * size, _ABSENT_BYTE, size)

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            started = time.perf_counter()
            list(pool.map(read, range(threads)))
            best = min(best, time.perf_counter() - started)
    return memory.nbytes / best
