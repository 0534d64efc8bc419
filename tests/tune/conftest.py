import pytest

from gear_trt.spec import CompressionConfig
from gear_trt.tune.tuning import Tuner
from tests.torch.networks import network, tokens

CONTEXT = 192


def make_tuner(progress=lambda *_: None, *, model=None, preset="k4v4", scale_keys=True):
    model = model or network("llama", num_hidden_layers=3)
    ids = tokens(2, CONTEXT + 1).numpy()
    base = CompressionConfig.preset(preset)
    return Tuner(model, ids, base, progress, scale_keys=scale_keys)


@pytest.fixture(scope="session")
def tuner():
    return make_tuner()
