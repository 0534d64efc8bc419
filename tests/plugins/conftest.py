from collections.abc import Iterator

import pytest

from gear_trt import native
from tests.plugins.checks import INSTRUCTION_SETS


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request) -> Iterator[str]:
    """Every kernel path in turn, as far as this machine can run it."""
    available = native.build_info()["instruction_sets"]
    if request.param not in available:
        pytest.skip(f"this machine runs {', '.join(available)} only")
    before = native.instruction_set()
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(before)
