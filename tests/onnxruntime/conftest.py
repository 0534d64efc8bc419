from collections.abc import Iterator

import pytest

from gear_trt import native


@pytest.fixture(autouse=True)
def portable_kernels() -> Iterator[None]:
    """The kernels that equal the reference to rounding: these tests are of the host."""
    before = native.instruction_set()
    native.use_instruction_set("scalar")
    yield
    native.use_instruction_set(before)
