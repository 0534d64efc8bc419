"""A model that was read, in the one form that the passes take, and the way to read each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.source.facts import SourceFacts

Progress = Callable[[str], None]
"""Told what a long step is about to do."""


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


def open_source(path: Path, progress: Progress) -> Source:
    """Read a model of any kind.

    Args:
        path: An `.onnx` or `.gguf` file, a Hugging Face folder, or a folder with one GGUF file.
        progress: Told what is done.

    Raises:
        GearError: `MISSING_FILE`, `DAMAGED_MODEL`, `UNSUPPORTED_MODEL`, `MISSING_DEPENDENCY`.
    """
    if not path.exists():
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"{path} does not exist",
            hint="pass an .onnx file, a .gguf file or a Hugging Face folder; models are not "
            "downloaded",
        )
    if path.suffix == ".onnx":
        from gear_trt.export.source.onnx_file import open_onnx

        return open_onnx(path, progress)
    from gear_trt.export.source.huggingface import open_checkpoint

    return open_checkpoint(*_locate_checkpoint(path), progress)


def _locate_checkpoint(path: Path) -> tuple[Path, str | None]:
    """Return the folder of a checkpoint, and the name of its GGUF file if it is one."""
    if path.is_file() and path.suffix == ".gguf":
        return path.parent, path.name
    if path.is_dir():
        if (path / "config.json").is_file():
            return path, None
        found = sorted(item.name for item in path.glob("*.gguf"))
        if len(found) == 1:
            return path, found[0]
        models = sorted(item.name for item in (*path.glob("*.onnx"), *path.glob("*.gguf")))
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"{path} holds no config.json and {len(found) or 'no'} GGUF files",
            hint=f"pass one of its files: {', '.join(models)}" if models else "pass a model file",
        )
    raise GearError(
        ErrorCode.UNSUPPORTED_MODEL,
        f"{path} is no model file that gear-export knows",
        hint="pass an .onnx file, a .gguf file or a Hugging Face folder",
    )
