import pytest

from gear_trt.runtime.model import Model
from gear_trt.spec import CompressionConfig
from tests.graphs import ToyModel
from tests.portable import portable_kernels  # noqa: F401 - a fixture
from tests.runtime.folders import write_engine


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """An engine folder with preset k4v4 and a tokenizer; tests do not change it."""
    return write_engine(tmp_path_factory.mktemp("engine") / "k4v4")


@pytest.fixture(scope="session")
def exact_folder(tmp_path_factory):
    """The same model with a lossless cache: how tokens are batched must not matter."""
    toy = ToyModel(config=CompressionConfig.preset("exact"))
    return write_engine(tmp_path_factory.mktemp("engine") / "exact", toy)


@pytest.fixture(scope="session")
def toy_model(toy_folder):
    return Model.open(toy_folder, threads=1)
