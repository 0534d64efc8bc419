"""Writing a model repository: Triton's config, the model's code, the engine folder."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from pathlib import Path

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.build.folder import staged_folder
from gear_trt.runtime.choice import BackendName
from gear_trt.runtime.manifest import ENGINE_FILE, Manifest, TensorRTFacts
from gear_trt.serving.triton.step_model import step_config
from gear_trt.tensorrt.library import Flavour

CONFIG_FILE = "config.pbtxt"
CODE_FILE = "model.py"
VERSION = "1"
ENGINE_FOLDER = "engine"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: 0  # the scheduler makes batches, of tokens
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "chat" data_type: TYPE_BOOL dims: [ 1 ] optional: true }}
]
output [
  {{ name: "text_output" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "finish_reason" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "prompt_tokens" data_type: TYPE_INT32 dims: [ 1 ] }},
  {{ name: "generated_tokens" data_type: TYPE_INT32 dims: [ 1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]  # of several, each would have a cache of its own
parameters {{ key: "max_cache_bytes" value {{ string_value: "{max_cache_bytes}" }} }}
parameters {{ key: "max_batch" value {{ string_value: "{max_batch}" }} }}
parameters {{ key: "backend" value {{ string_value: "{backend}" }} }}
"""

_CODE = f'''\
"""An engine folder behind Triton's Python backend, which must be able to import gear_trt."""

from pathlib import Path

from gear_trt.serving.triton.model import GearModel


class TritonPythonModel(GearModel):
    """The name that Triton looks for."""

    folder = Path(__file__).parent / "{ENGINE_FOLDER}"
'''


def write_models(
    engine: Path,
    repository: Path,
    *,
    name: str,
    max_cache_bytes: int,
    max_batch: int,
    backend: BackendName,
) -> list[str]:
    """Write an engine into a model repository.

    A folder with an engine of TensorRT gives a second model, single steps in its backend; one of
    TensorRT-RTX does not, as Triton has no backend for it.

    Args:
        engine: Engine folder; it is copied.
        repository: Folder of models; it may hold others.
        name: The model's.
        max_cache_bytes: Of pages and buffers.
        max_batch: Answers that are generated at the same time.
        backend: What runs the graph, on the machine that serves the repository.

    Returns:
        The command that serves the repository.

    Raises:
        GearError: Those of `Manifest.read`; `BAD_REQUEST` for a name that Triton does not take;
            `OUTPUT_EXISTS` where the repository has the model.
    """
    manifest = Manifest.read(engine)
    if not _NAME.fullmatch(name):
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{name!r} is no name for a model",
            hint="use letters, digits, dots, dashes and underscores",
        )
    command = ["tritonserver", f"--model-repository={repository}"]
    with ExitStack() as stages:
        folder = stages.enter_context(staged_folder(repository / name, force=False))
        config = _CONFIG.format(
            name=name, max_cache_bytes=max_cache_bytes, max_batch=max_batch, backend=backend
        )
        _write_text_model(engine, folder, config)
        if (facts := manifest.tensorrt) is not None and facts.flavour == Flavour.TENSORRT:
            model = repository / f"{name}-step"
            folder = stages.enter_context(staged_folder(model, force=False))
            config = step_config(engine, manifest, facts, name=model.name)
            _write_step_model(engine, folder, config, facts)
            command += _backend_options(model, facts)
    return command


def _write_text_model(engine: Path, folder: Path, config: str) -> None:
    (folder / CONFIG_FILE).write_text(config)
    shutil.copytree(engine, folder / VERSION / ENGINE_FOLDER)
    (folder / VERSION / CODE_FILE).write_text(_CODE)


def _write_step_model(engine: Path, folder: Path, config: str, facts: TensorRTFacts) -> None:
    (folder / CONFIG_FILE).write_text(config)
    (folder / VERSION).mkdir()
    for file in filter(None, (ENGINE_FILE, facts.plugin)):
        shutil.copyfile(engine / Path(file).name, folder / VERSION / Path(file).name)


def _backend_options(model: Path, facts: TensorRTFacts) -> list[str]:
    """Return what Triton's TensorRT backend must be told, for all its models at once."""
    options = []
    if facts.plugin is not None:
        library = model / VERSION / Path(facts.plugin).name
        options.append(f"--backend-config=tensorrt,plugins={library}")
    if facts.version_compatible:
        options.append("--backend-config=tensorrt,version-compatible=true")
    return options
