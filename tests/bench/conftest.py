import pytest

from gear_trt.bench import bandwidth, operator


@pytest.fixture(autouse=True)
def small_arrays(monkeypatch):
    """Keep what exists only to be larger than caches small: tests judge no speed."""
    monkeypatch.setattr(bandwidth, "MINIMUM_BYTES", 1 << 20)
    monkeypatch.setattr(bandwidth, "MAXIMUM_BYTES", 1 << 20)
    monkeypatch.setattr(operator, "MAXIMUM_ROUND_BYTES", 1 << 18)
