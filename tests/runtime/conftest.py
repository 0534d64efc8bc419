import pytest

from gear_trt.runtime.paged_engine import PagedEngine
from gear_trt.spec import CompressionConfig
from tests.graphs import ToyModel
from tests.portable import portable_kernels  # noqa: F401 - a fixture
from tests.runtime.device import OPEN
from tests.runtime.folders import write_engine
from tests.runtime.paged import new_cache


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """An engine folder with preset k4v4 and a tokenizer; tests do not change it."""
    return write_engine(tmp_path_factory.mktemp("engine") / "k4v4")


@pytest.fixture(scope="session")
def exact_folder(tmp_path_factory):
    """The same model with a lossless cache: how tokens are batched must not matter."""
    toy = ToyModel(config=CompressionConfig.preset("exact"))
    return write_engine(tmp_path_factory.mktemp("engine") / "exact", toy)


@pytest.fixture(scope="session", params=OPEN)
def open_model(request):
    """Open an engine folder; its caches lie in the host's memory, or on a device."""
    return OPEN[request.param]


@pytest.fixture(scope="session")
def toy_model(toy_folder, open_model):
    return open_model(toy_folder)


@pytest.fixture(scope="session", params=["k4v4", "exact", "no sinks"])
def any_model(request, tmp_path_factory, open_model):
    """Pages that hold few rows, pages that hold many, and sequences without sinks."""
    config = (
        CompressionConfig.preset("k2v2", sinks=0)
        if request.param == "no sinks"
        else CompressionConfig.preset(request.param)
    )
    folder = tmp_path_factory.mktemp("any") / "engine"
    return open_model(write_engine(folder, ToyModel(config=config)))


@pytest.fixture
def small(toy_model):
    """Make an engine with a cache of a few pages; return both."""

    def make(*, pages=64, slots=8):
        cache = new_cache(toy_model, num_pages=pages, slots=slots)
        return PagedEngine(toy_model, cache), cache

    return make
