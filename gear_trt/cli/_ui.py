"""What every command shares: results, progress, errors and the exit status they lead to."""

from __future__ import annotations

import errno
import json as jsonlib
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from typer.exceptions import TyperException

from gear_trt.errors import ErrorCode, ExitStatus, GearError

stdout = Console()
"""Results."""
stderr = Console(stderr=True)
"""Progress, log and errors."""

Progress = Callable[[str], None]
"""Says which stage a long command has reached."""

ERROR_SCHEMA = "gear.error/1"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(action: Callable[[], None], *, json: bool = False, verbose: bool = False) -> None:
    """Run the body of a command and leave with the exit status that its outcome calls for.

    Args:
        action: The body; it prints its own result.
        json: The command was called with ``--json``: an error is one JSON object on stdout too.
        verbose: Show the log, and the traceback of errors that the user can act on.

    Raises:
        typer.Exit: With an `ExitStatus`, whenever the body did not end normally.
    """
    _set_up_log(verbose=verbose)
    try:
        action()
    except (typer.Exit, typer.Abort, TyperException, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        _say("interrupted")
        raise typer.Exit(ExitStatus.INTERRUPTED) from None
    except GearError as error:
        _fail(error, json=json, verbose=verbose)
    except OSError as error:
        if error.errno is None or error.strerror is None:
            _report_bug()
        _fail(_from_os_error(error), json=json, verbose=verbose)
    except Exception:
        _report_bug()


def emit_json(schema: str, payload: BaseModel | dict[str, object]) -> None:
    """Print the one object of ``--json``: the payload's fields after its schema."""
    fields = payload.model_dump(mode="json") if isinstance(payload, BaseModel) else payload
    typer.echo(jsonlib.dumps({"schema": schema, **fields}, ensure_ascii=False))


@contextmanager
def progress() -> Iterator[Progress]:
    """Yield a function that shows the stage: a spinner on a terminal, otherwise a line each."""
    if not stderr.is_terminal:
        yield _say
        return
    with stderr.status("") as status:
        yield status.update


@contextmanager
def progress_bar() -> Iterator[Callable[[str, str, float], None]]:
    """Yield a function of stage, detail and part done (0 to 1): a bar, or a line per stage."""
    if not stderr.is_terminal:
        last = ""

        def say(stage: str, detail: str, done: float) -> None:
            nonlocal last
            if stage != last:
                _say(stage)
            last = stage

        yield say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    with Progress(BarColumn(), TimeRemainingColumn(), text, console=stderr, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda stage, detail, done: bar.update(
            task, description=f"{stage}: {detail}" if detail else stage, completed=done
        )


def _set_up_log(*, verbose: bool) -> None:
    from rich.logging import RichHandler

    log = logging.getLogger("gear_trt")
    log.setLevel(logging.DEBUG if verbose else logging.WARNING)
    log.handlers = [RichHandler(console=stderr, show_time=False, show_path=False)]
    log.propagate = False


def _say(line: str) -> None:
    stderr.print(line, markup=False, highlight=False, soft_wrap=True)


def _fail(error: GearError, *, json: bool, verbose: bool) -> NoReturn:
    if verbose:
        _say(traceback.format_exc().rstrip())
    if json:
        emit_json(ERROR_SCHEMA, _error_fields(error))
    stderr.print(f"[bold red]error\\[{error.code.code}][/]", end="")
    _say(f": {error.message}")
    for line in (error.detail or "").splitlines():
        _say(f"  {line}")
    _say(f"  hint: {error.hint}")
    raise typer.Exit(error.code.exit_status)


def _error_fields(error: GearError) -> dict[str, object]:
    return {
        "code": error.code.code,
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
    }


def _from_os_error(error: OSError) -> GearError:
    where = error.filename or "the output"
    if error.errno in _NO_SPACE:
        return GearError(
            ErrorCode.DISK_FULL,
            f"cannot write {where}: {error.strerror}",
            hint="free some space or choose another folder",
        )
    return GearError(
        ErrorCode.MISSING_FILE,
        f"cannot open {where}: {error.strerror}",
        hint="check the path and its permissions",
    )


def _report_bug() -> NoReturn:
    _say(traceback.format_exc().rstrip())
    _say("this is a bug of gear_trt: please report it with the lines above and `gear doctor`")
    raise typer.Exit(ExitStatus.INTERNAL)
