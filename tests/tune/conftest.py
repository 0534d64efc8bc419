import pytest

from gear_trt.spec import CompressionConfig
from gear_trt.tune.tuning import Tuner
from tests.torch.networks import network, tokens

CONTEXT = 192


def make_tuner(progress=lambda *_: None):
    model = network("llama", num_hidden_layers=3)
    ids = tokens(2, CONTEXT + 1).numpy()
    return Tuner(model, ids, CompressionConfig.preset("k4v4"), progress)


@pytest.fixture(scope="session")
def tuner():
    return make_tuner()
