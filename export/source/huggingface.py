"""Reading a checkpoint with transformers: a Hugging Face folder, or a GGUF file."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.source import torch_export
from gear_trt.export.source.companions import (
    TOKENIZER_FILE,
    copy_generation_config,
    copy_tokenizer,
)
from gear_trt.export.source.facts import facts_of
from gear_trt.export.source.source import Dtype, Progress, Source

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

GGUF_PACKAGES = ("accelerate", "gguf")
GGUF_MAGIC = b"GGUF"
OLD_FILES = ("spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")
"""Tokenizers that can be converted to `tokenizer.json`."""

log = logging.getLogger(__name__)


def open_checkpoint(
    folder: Path, gguf_file: str | None, progress: Progress, dtype: Dtype | None = None
) -> Source:
    """Read a checkpoint and export it to ONNX.

    Args:
        folder: The folder that holds it.
        gguf_file: Name of the GGUF file in it; None for safetensors.
        progress: Told what is done.
        dtype: Of weights and activations; None keeps float16 and makes all else float32.

    Raises:
        GearError: `MISSING_FILE`, `DAMAGED_MODEL`, `UNSUPPORTED_MODEL`, `MISSING_DEPENDENCY`.
    """
    name = gguf_file or folder.resolve().name
    progress(f"loading {name}")
    network = load_network(
        folder, gguf_file, attention=torch_export.register_attention(), dtype=dtype
    )
    progress(f"exporting {name} with torch.onnx")
    model = torch_export.to_onnx(network)
    generation = network.generation_config.to_dict() if network.generation_config else {}
    return Source(
        model,
        facts_of(name, network.config.to_dict(), generation),
        partial(_write_companions, folder, gguf_file),
    )


def load_network(
    folder: Path, gguf_file: str | None, *, attention: str, dtype: Dtype | None = None
) -> PreTrainedModel:
    """Load a checkpoint that can be exported.

    Args:
        folder: The folder that holds it.
        gguf_file: Name of the GGUF file in it; None for safetensors.
        attention: Name of transformers' attention implementation.
        dtype: Type of weights and activations; None means what `export_dtype` chooses.

    Raises:
        GearError: `MISSING_FILE`, `DAMAGED_MODEL`, `UNSUPPORTED_MODEL`, `MISSING_DEPENDENCY`.
    """
    if gguf_file is not None:
        _check_gguf(folder / gguf_file)
    with _quiet(), _explained(folder / (gguf_file or "")):
        config = _load_config(folder, gguf_file)
        torch_export.check_config(config)
        return _load_model(folder, gguf_file, config, attention, dtype)


def load_tokenizer(folder: Path, gguf_file: str | None) -> Any:  # noqa: ANN401 - of many classes
    """Load the tokenizer of a checkpoint.

    Raises:
        GearError: `MISSING_FILE` where it has none, or none that can be converted.
    """
    from transformers import AutoTokenizer

    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **_gguf(gguf_file)
            )
    except Exception as error:  # each of the converters raises errors of its own
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"the tokenizer of {folder / (gguf_file or '')} cannot be loaded: {_first_line(error)}",
            hint="put tokenizer.json beside the model",
        ) from error


def _check_gguf(path: Path) -> None:
    missing = [name for name in GGUF_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise GearError(
            ErrorCode.MISSING_DEPENDENCY,
            f"GGUF files need packages that are not installed: {', '.join(missing)}",
            hint="pip install 'gear-trt[gguf]'",
        )
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise _damaged(path, "it does not begin as a GGUF file does")


def _load_config(folder: Path, gguf_file: str | None) -> PreTrainedConfig:
    from transformers import AutoConfig

    config: PreTrainedConfig = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **_gguf(gguf_file)
    )
    return config


def _load_model(
    folder: Path,
    gguf_file: str | None,
    config: PreTrainedConfig,
    attention: str,
    dtype: Dtype | None,
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=torch_export.export_dtype(config, dtype),
        attn_implementation=attention,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **(_gguf(gguf_file) or {"use_safetensors": True}),
    )
    network: PreTrainedModel = loaded[0]
    loading: dict[str, Any] = loaded[1]
    absent = sorted(loading["missing_keys"]) or sorted(map(str, loading["mismatched_keys"]))
    if absent:
        raise _damaged(folder / (gguf_file or ""), f"weight {absent[0]} is missing or misshapen")
    return network


def _gguf(gguf_file: str | None) -> dict[str, Any]:
    return {} if gguf_file is None else {"gguf_file": gguf_file}


def _write_companions(folder: Path, gguf_file: str | None, target: Path) -> None:
    copy_generation_config(folder, target)
    copy_tokenizer(folder, target)
    is_convertible = gguf_file is not None or any((folder / name).is_file() for name in OLD_FILES)
    if not (target / TOKENIZER_FILE).is_file() and is_convertible:
        _convert_tokenizer(folder, gguf_file, target)


def _convert_tokenizer(folder: Path, gguf_file: str | None, target: Path) -> None:
    """Write the tokenizer of a GGUF file, or of an older format; an engine is of use without."""
    try:
        load_tokenizer(folder, gguf_file).save_pretrained(target)
    except GearError as error:
        log.warning("%s", error.message)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what loading raises into errors that a user can act on."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    except ImportError as error:
        raise GearError(
            ErrorCode.MISSING_DEPENDENCY,
            f"{path} needs a package that is not installed: {_first_line(error)}",
            hint=f"pip install {error.name}" if error.name else "install the package it names",
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"{path} is not complete: {_first_line(error)}",
            hint="get the missing files: config.json and safetensors",
        ) from error
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        reason = _first_line(error)
        if torch_export.ATTENTION_NAME in reason:
            reason = "its attention cannot be replaced"
        if path.suffix == ".gguf" and "support" not in reason:
            raise _damaged(path, reason) from error
        raise GearError(
            ErrorCode.UNSUPPORTED_MODEL,
            f"transformers cannot load {path}: {reason}",
            hint="only decoder models that transformers knows can be exported",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and notes off the terminal; errors are raised anyway."""
    gguf_utils: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    notes: Any = import_module("transformers.utils.logging")
    verbosity, bar = notes.get_verbosity(), gguf_utils.tqdm
    notes.set_verbosity_error()
    notes.disable_progress_bar()
    gguf_utils.tqdm = partial(bar, disable=True)  # this bar has no switch
    try:
        yield
    finally:
        gguf_utils.tqdm = bar
        notes.set_verbosity(verbosity)
        notes.enable_progress_bar()


def _damaged(path: Path, reason: str) -> GearError:
    return GearError(
        ErrorCode.DAMAGED_MODEL, f"{path} is damaged: {reason}", hint="get the file again"
    )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
