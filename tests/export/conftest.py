import numpy as np
import pytest

from gear_trt.errors import GearError
from gear_trt.export import export_model
from gear_trt.native import library_path
from gear_trt.spec import CompressionConfig
from tests.export import decoders

FORMS = ("transformers", "dynamo-18", "dynamo-23", "genai")
EXACT = CompressionConfig.preset("exact")


@pytest.fixture(scope="session")
def network():
    return decoders.llama()


@pytest.fixture(scope="session")
def checkpoint(network, tmp_path_factory):
    return decoders.save_checkpoint(network, tmp_path_factory.mktemp("checkpoint") / "tiny-llama")


@pytest.fixture(scope="session")
def sources(network, checkpoint, tmp_path_factory):
    """Return the model in a form, made once."""
    return sources_of(network, checkpoint, tmp_path_factory.mktemp("sources"))


def sources_of(network, checkpoint, folder):
    """Return a function that returns a model in a form, made once in the folder."""
    makers = {
        "transformers": lambda: checkpoint,
        "dynamo-18": lambda: decoders.save_dynamo(network, folder / "18.onnx", opset=18),
        "dynamo-23": lambda: decoders.save_dynamo(network, folder / "23.onnx", opset=23),
        "genai": lambda: decoders.save_genai(checkpoint, folder / "genai"),
    }
    made = {}

    def source(form):
        if form not in made:
            made[form] = makers[form]()
        return made[form]

    return source


@pytest.fixture(scope="session")
def engines(sources, tmp_path_factory):
    """Return the engine folder of a form, lossless, exported once."""
    folder = tmp_path_factory.mktemp("engines")

    def engine(form):
        output = folder / form
        if not output.exists():
            export_model(sources(form), output, config=EXACT, max_context=decoders.CONTEXT)
        return output

    return engine


@pytest.fixture(scope="session")
def needs_library():
    try:
        library_path()
    except GearError as error:
        pytest.skip(f"cannot run engines: {error.message}")


@pytest.fixture(scope="session")
def tokens():
    """[2, 150] token ids: two pages and a bit."""
    return np.random.default_rng(0).integers(3, decoders.VOCABULARY, (2, 150))
