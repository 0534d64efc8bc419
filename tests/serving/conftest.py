import pytest

from gear_trt.runtime.model import Model
from tests.runtime.folders import write_engine


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """An engine folder with preset k4v4 and a tokenizer; tests do not change it."""
    return write_engine(tmp_path_factory.mktemp("serving") / "k4v4")


@pytest.fixture(scope="session")
def model(folder):
    return Model.open(folder, threads=1)
