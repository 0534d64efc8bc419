import os
from contextlib import contextmanager

import pytest

from gear_trt import cuda
from tests.cuda import emulated as emulated_functions
from tests.cuda.build import emulated_build


@contextmanager
def library_of(name):
    """Yield `compress_pages` and `attention` on numpy arrays, of a build for the emulated GPU."""
    before = os.environ.get(cuda.LIBRARY_VARIABLE)
    os.environ[cuda.LIBRARY_VARIABLE] = str(emulated_build() / name)
    cuda._library.cache_clear()
    yield emulated_functions
    del os.environ[cuda.LIBRARY_VARIABLE]
    if before is not None:
        os.environ[cuda.LIBRARY_VARIABLE] = before
    cuda._library.cache_clear()


@pytest.fixture(scope="package")
def emulated():
    """The kernels on the emulated GPU."""
    with library_of("libgear_emulated.so") as functions:
        yield functions


@pytest.fixture(params=["forward", "reverse"])
def thread_order(request, monkeypatch):
    """The order in which the emulator runs the threads of a block: no result may depend on it."""
    monkeypatch.setenv("GEAR_EMULATOR_ORDER", request.param)
    return request.param
