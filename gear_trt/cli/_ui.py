"""What every command shares: results, progress, errors and the exit status they lead to."""

from __future__ import annotations

import errno
import json as jsonlib
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

import typer
from pydantic import BaseModel
from rich.console import Console
from typer.exceptions import TyperException

from gear_trt.errors import ErrorCode, ExitStatus, GearError

if TYPE_CHECKING:
    from rich.table import Table

    from gear_trt.export.report import SiteReport

stdout = Console()
"""Results."""
stderr = Console(stderr=True)
"""Progress, log and errors."""


class Progress(Protocol):
    """Says which stage a long command has reached."""

    def __call__(self, stage: str, done: float | None = None, /) -> None:
        """Take the stage and, where it is known, which part of it is done, 0 to 1."""


ERROR_SCHEMA = "gear.error/1"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_UNFOLDED = 10_000
"""Columns of a line that no person reads on a terminal: a row stays a line."""


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


def print_table(table: Table) -> None:
    """Print a table, folded to a terminal's width and unfolded elsewhere."""
    console = stdout if stdout.is_terminal else Console(width=_UNFOLDED)
    console.print(table, highlight=False)


def print_sites(sites: Sequence[SiteReport], *, each: bool) -> None:
    """Print the attention layers of a model, and of every one whether it can be routed.

    Args:
        sites: What the export found.
        each: A row for each layer, with its node; otherwise one for all that are alike.
    """
    from rich.table import Column, Table
    from rich.text import Text

    columns = ("form", "heads", "KV heads", "head_dim", "scale", "softcap", "window")
    verdict = Column("verdict", overflow="fold")
    node = (Column("node", overflow="fold"),) if each else ()
    table = Table("layer", *columns, *node, verdict, box=None)
    for layers, site in _alike(sites, each=each):
        where = (Text(site.node),) if each else ()
        reason = "match" if site.reason is None else f"no match: {site.reason}"
        table.add_row(layers, *_site_facts(site), *where, Text(reason))
    print_table(table)
    routed = sum(site.reason is None for site in sites)
    stdout.print(f"{routed} of {len(sites)} attention layers can be routed", highlight=False)


def _alike(sites: Sequence[SiteReport], *, each: bool) -> Iterator[tuple[str, SiteReport]]:
    """Group layers that differ in nothing but their node, in the order of the first of each."""
    from gear_trt.spec.model_config import layer_ranges

    groups: dict[object, list[SiteReport]] = {}
    for site in sites:
        key = site.layer if each else site.model_copy(update={"layer": 0, "node": ""})
        groups.setdefault(key, []).append(site)
    for group in groups.values():
        yield layer_ranges([site.layer for site in group]), group[0]


def _site_facts(site: SiteReport) -> Sequence[str]:
    if site.reason is not None:
        return (site.form, *[""] * 6)
    heads = (site.num_heads, site.num_kv_heads, site.head_dim)
    scores = (f"{site.scale:.6g}", site.softcap or "none", site.sliding_window or "all")
    return (site.form, *map(str, (*heads, *scores)))


@contextmanager
def progress() -> Iterator[Progress]:
    """Yield a function of stage and part done (0 to 1, or None): a bar, or a line per stage."""
    with progress_bar() as show:
        yield lambda stage, done=None: show(stage, "", done)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, str, float | None], None]]:
    """Yield a function of stage, detail and part done: a bar, or a line per stage."""
    if not stderr.is_terminal:
        last = ""

        def say(stage: str, detail: str, done: float | None) -> None:
            nonlocal last
            if stage != last:
                _say(stage)
            last = stage

        yield say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    with Progress(BarColumn(), TimeRemainingColumn(), text, console=stderr, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, detail, done: bar.update(
            task,
            description=f"{stage}: {detail}" if detail else stage,
            total=None if done is None else 1.0,  # None leaves it as it is
            completed=done or 0.0,
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
    if error.errno in _NO_PERMISSION:
        return GearError(
            ErrorCode.NO_PERMISSION,
            f"cannot open {where}: {error.strerror}",
            hint="check its permissions and those of its folder, or choose another place",
        )
    return GearError(
        ErrorCode.MISSING_FILE, f"cannot open {where}: {error.strerror}", hint="check the path"
    )


def _report_bug() -> NoReturn:
    _say(traceback.format_exc().rstrip())
    _say("this is a bug of gear_trt: please report it with the lines above and `gear doctor`")
    raise typer.Exit(ExitStatus.INTERNAL)
