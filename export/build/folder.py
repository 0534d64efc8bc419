"""Engine folders appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.manifest import MANIFEST_FILE


def check_output(output: Path, *, force: bool) -> None:
    """Refuse to overwrite anything; with `force`, anything but an engine or an empty folder.

    Raises:
        GearError: `OUTPUT_EXISTS`.
    """
    if not output.exists() and not output.is_symlink():
        return
    if output.is_dir() and not any(output.iterdir()):
        return
    is_engine = output.is_dir() and (output / MANIFEST_FILE).is_file()
    if force and is_engine and not output.is_symlink():
        return
    raise GearError(
        ErrorCode.OUTPUT_EXISTS,
        f"{output} exists already" if is_engine else f"{output} exists and is no engine folder",
        hint="pass --force to replace it" if is_engine else "choose another folder",
    )


@contextmanager
def staged_folder(output: Path, *, force: bool) -> Iterator[Path]:
    """Yield a new folder that takes the place of `output` when the block ends without an error.

    Args:
        output: The engine folder to be.
        force: Replace an engine folder.

    Raises:
        GearError: `OUTPUT_EXISTS`.
    """
    check_output(output, force=force)
    output.parent.mkdir(parents=True, exist_ok=True)
    stage = _beside(output, "partial")
    try:
        stage.mkdir()
        yield stage
        check_output(output, force=force)
        _publish(stage, output)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def _publish(stage: Path, output: Path) -> None:
    if not output.exists():
        stage.rename(output)
        return
    old = _beside(output, "old")
    output.rename(old)
    try:
        stage.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old)


def _beside(output: Path, purpose: str) -> Path:
    return output.parent / f".{output.name}.{os.getpid()}.{purpose}"
