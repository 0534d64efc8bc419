"""A `libcuda.so.1` that says there is a GPU: what a machine with a driver and too little else does
can be seen anywhere. It has what gear_trt/driver.py asks, and memory, which is the host's; it
computes nothing."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

SOURCE = r"""
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { (void)flags; return 0; }
int cuDriverGetVersion(int* version) { *version = 13020; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int size, int device) {
  (void)device; strncpy(name, "Imaginary B1", size); return 0;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) {
  (void)device; *bytes = 80000000000; return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device; *value = attribute == 75 ? 9 : 0; return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) { (void)device; *context = 0; return 0; }
int cuCtxSetCurrent(void* context) { (void)context; return 0; }
int cuStreamCreate(void** stream, unsigned flags) { *stream = 0; return flags != 1; }
int cuStreamSynchronize(void* stream) { (void)stream; return 0; }
int cuMemAlloc_v2(char** memory, size_t bytes) {
  *memory = aligned_alloc(256, (bytes + 255) / 256 * 256); return *memory == NULL;
}
int cuMemsetD8Async(char* memory, unsigned char byte, size_t bytes, void* stream) {
  (void)stream; memset(memory, byte, bytes); return 0;
}
int cuMemcpyHtoDAsync_v2(char* to, const void* from, size_t bytes, void* stream) {
  (void)stream; memcpy(to, from, bytes); return 0;
}
int cuMemcpyDtoHAsync_v2(void* to, const char* from, size_t bytes, void* stream) {
  (void)stream; memcpy(to, from, bytes); return 0;
}
"""


@cache
def fake_driver() -> Path:
    """The folder of the library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the imaginary driver needs a C compiler")
    folder = Path(mkdtemp(prefix="fake_driver"))
    source = folder / "cuda.c"
    source.write_text(SOURCE)
    library = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return folder


def environment(**variables) -> dict[str, str]:
    """The environment of a process that finds the driver."""
    return {**os.environ, "LD_LIBRARY_PATH": str(fake_driver()), **variables}
