import pytest

from tests.portable import portable_kernels  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def _portable(portable_kernels):  # noqa: F811 - as above
    """Here caches are judged, not the kernels."""
