"""Writing a model repository: Triton's config, the model's code, the engine folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.build.folder import staged_folder
from gear_trt.runtime.manifest import Manifest

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
"""

_CODE = f'''\
"""An engine folder behind Triton's Python backend, which must be able to import gear_trt."""

from pathlib import Path

from gear_trt.serving.triton.model import GearModel


class TritonPythonModel(GearModel):
    """The name that Triton looks for."""

    folder = Path(__file__).parent / "{ENGINE_FOLDER}"
'''


def write_model(
    engine: Path, repository: Path, *, name: str, max_cache_bytes: int, max_batch: int
) -> Path:
    """Write a model into a model repository.

    Args:
        engine: Engine folder; it is copied.
        repository: Folder of models; it may hold others.
        name: The model's.
        max_cache_bytes: Of pages and buffers.
        max_batch: Answers that are generated at the same time.

    Returns:
        The model's folder.

    Raises:
        GearError: Those of `Manifest.read`; `BAD_REQUEST` for a name that Triton does not take;
            `OUTPUT_EXISTS` where the repository has the model.
    """
    Manifest.read(engine)
    if not _NAME.fullmatch(name):
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{name!r} is no name for a model",
            hint="use letters, digits, dots, dashes and underscores",
        )
    with staged_folder(repository / name, force=False) as folder:
        version = folder / VERSION
        shutil.copytree(engine, version / ENGINE_FOLDER)
        (version / CODE_FILE).write_text(_CODE)
        config = _CONFIG.format(name=name, max_cache_bytes=max_cache_bytes, max_batch=max_batch)
        (folder / CONFIG_FILE).write_text(config)
    return repository / name
