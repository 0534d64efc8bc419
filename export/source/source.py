"""A model that was read, in the one form that the passes take, and the way to read each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import onnx_ir as ir

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.source.facts import SourceFacts

Dtype = Literal["float32", "float16", "bfloat16"]
"""Type that the weights and activations of a checkpoint get."""


class Progress(Protocol):
    """Told what a long step is about to do."""

    def __call__(self, stage: str, done: float | None = None, /) -> None:
        """Take the stage and, where it is known, which part of it is done, 0 to 1."""


def silent(stage: str, done: float | None = None, /) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Source:
    """A model that was read.

    Attributes:
        model: Its graph and weights.
        facts: What its files say of it.
        write_companions: Writes tokenizer and generation config into a folder.
    """

    model: ir.Model
    facts: SourceFacts
    write_companions: Callable[[Path], None]


def open_source(path: Path, progress: Progress, dtype: Dtype | None = None) -> Source:
    """Read a model of any kind.

    Args:
        path: An `.onnx` or `.gguf` file, a folder with one of them, or a Hugging Face folder.
        progress: Told what is done.
        dtype: Of the weights and activations of a checkpoint; None keeps float16 and makes all
            else float32. Types of ONNX files stay what they are.

    Raises:
        GearError: `MISSING_FILE`, `DAMAGED_MODEL`, `UNSUPPORTED_MODEL`, `MISSING_DEPENDENCY`;
            `BAD_CONFIG` for a type and an ONNX file.
    """
    file = find_model_file(path)
    if file is not None and file.suffix == ".onnx":
        if dtype is not None:
            raise GearError(
                ErrorCode.BAD_CONFIG,
                f"{file} keeps the types of its tensors: they cannot be made {dtype}",
                hint=f"write the ONNX file in {dtype}, or export the checkpoint it was made from",
            )
        from gear_trt.export.source.onnx_file import open_onnx

        return open_onnx(file, progress)
    from gear_trt.export.source.huggingface import open_checkpoint

    if file is None:
        return open_checkpoint(path, None, progress, dtype)
    if file.suffix == ".gguf":
        return open_checkpoint(file.parent, file.name, progress, dtype)
    raise GearError(
        ErrorCode.UNSUPPORTED_MODEL,
        f"{path} is no model file that gear-export knows",
        hint="pass an .onnx file, a .gguf file or a Hugging Face folder",
    )


def find_model_file(path: Path) -> Path | None:
    """Return the model file that a path names or holds, or None for a Hugging Face folder.

    Raises:
        GearError: `MISSING_FILE`.
    """
    if not path.exists():
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"{path} does not exist",
            hint="pass an .onnx file, a .gguf file or a Hugging Face folder; models are not "
            "downloaded",
        )
    return _file_in(path) if path.is_dir() else path


def _file_in(folder: Path) -> Path | None:
    if any(folder.glob("*.safetensors")):
        return None
    files = sorted((*folder.glob("*.onnx"), *folder.glob("*.gguf")))
    if len(files) == 1:
        return files[0]
    if not files and (folder / "config.json").is_file():
        return None
    raise GearError(
        ErrorCode.MISSING_FILE,
        f"{folder} holds {len(files) or 'no'} model files",
        hint="pass one of them: " + ", ".join(file.name for file in files)
        if files
        else "pass an .onnx file, a .gguf file or a Hugging Face folder",
    )
