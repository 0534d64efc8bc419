"""Engine folders appear whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.manifest import MANIFEST_FILE

_PARTIAL, _OLD = "partial", "old"


def check_output(output: Path, *, force: bool) -> None:
    """Refuse to overwrite anything; with `force`, anything but an engine or an empty folder.

    Raises:
        GearError: `OUTPUT_EXISTS`.
    """
    if output.is_symlink():
        raise _exists(f"{output} is a link", "name the folder that it points to")
    if not output.exists() or _is_empty(output):
        return
    if not (output / MANIFEST_FILE).is_file():
        raise _exists(f"{output} exists and is no engine folder", "choose another folder")
    if not force:
        raise _exists(f"{output} exists already", "pass --force to replace it")


def _is_empty(output: Path) -> bool:
    return output.is_dir() and not any(output.iterdir())


def _exists(message: str, hint: str) -> GearError:
    return GearError(ErrorCode.OUTPUT_EXISTS, message, hint=hint)


@contextmanager
def staged_folder(output: Path, *, force: bool) -> Iterator[Path]:
    """Yield a new folder that takes the place of `output` when the block ends without an error.

    What an export that was killed has left beside it is removed first.

    Args:
        output: The engine folder to be.
        force: Replace an engine folder.

    Raises:
        GearError: `OUTPUT_EXISTS`.
    """
    output = output.absolute()
    check_output(output, force=force)
    output.parent.mkdir(parents=True, exist_ok=True)
    _clear_up(output)
    check_output(output, force=force)
    stage = _beside(output, _PARTIAL)
    try:
        stage.mkdir()
        yield stage
        check_output(output, force=force)
        _publish(stage, output)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def _clear_up(output: Path) -> None:
    """Remove what exports whose process is gone have left; bring back an engine they moved away."""
    for folder in output.parent.glob(f".{glob.escape(output.name)}.*.*"):
        process, _, purpose = folder.name.removeprefix(f".{output.name}.").partition(".")
        if purpose not in (_PARTIAL, _OLD) or not process.isdigit() or _is_running(int(process)):
            continue
        if purpose == _OLD and not output.exists():
            folder.rename(output)
        else:
            shutil.rmtree(folder)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's, or a name that is no export's
        return True
    return True


def _publish(stage: Path, output: Path) -> None:
    if not output.exists() or _is_empty(output):
        stage.rename(output)
        return
    old = _beside(output, _OLD)
    output.rename(old)
    try:
        stage.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old)


def _beside(output: Path, purpose: str) -> Path:
    return output.parent / f".{output.name}.{os.getpid()}.{purpose}"
