"""Kernels that equal the reference to rounding, for tests of what stands around them."""

from collections.abc import Iterator

import pytest

from gear_trt import native


@pytest.fixture
def portable_kernels() -> Iterator[None]:
    """Use the portable kernels; the others round more, which tests/plugins judges."""
    before = native.instruction_set()
    native.use_instruction_set("scalar")
    yield
    native.use_instruction_set(before)
