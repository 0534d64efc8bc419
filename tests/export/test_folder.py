"""An engine folder appears whole or not at all, and replaces nothing but its like."""

import errno
import os
import subprocess
import sys

import pytest

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.build.folder import check_output, staged_folder
from gear_trt.runtime.manifest import MANIFEST_FILE


@pytest.fixture
def engine(tmp_path):
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / MANIFEST_FILE).write_text("{}")
    (folder / "old.bin").write_text("old")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_at_the_end_with_its_parents(tmp_path):
    output = tmp_path / "some" / "where" / "engine"
    with staged_folder(output, force=False) as stage:
        (stage / "model").write_text("new")
        assert not output.exists()
    assert names(output) == ["model"]
    assert names(output.parent) == ["engine"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "engine").mkdir()
    with staged_folder(tmp_path / "engine", force=False) as stage:
        (stage / "model").write_text("new")
    assert names(tmp_path / "engine") == ["model"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), SystemExit()]
)
def test_a_failure_leaves_the_old_engine_and_nothing_else(engine, error):
    with pytest.raises(type(error)), staged_folder(engine, force=True) as stage:
        (stage / "model").write_text("half")
        raise error
    assert names(engine) == [MANIFEST_FILE, "old.bin"]
    assert names(engine.parent) == ["engine"]


def test_force_replaces_an_engine(engine):
    with staged_folder(engine, force=True) as stage:
        (stage / "model").write_text("new")
    assert names(engine) == ["model"]
    assert names(engine.parent) == ["engine"]


@pytest.fixture
def gone():
    """Id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(engine, process, purpose):
    folder = engine.parent / f".{engine.name}.{process}.{purpose}"
    folder.mkdir()
    (folder / "model").write_text("half")
    return folder


def export_again(engine):
    with staged_folder(engine, force=True) as stage:
        (stage / "model").write_text("new")


def test_what_a_killed_export_has_left_is_removed(engine, gone):
    for purpose in ("partial", "old"):
        leave(engine, gone, purpose)
    export_again(engine)
    assert names(engine.parent) == ["engine"]


def test_what_is_not_left_by_a_killed_export_stays(engine, gone):
    stays = [
        leave(engine, os.getppid(), "partial"),
        leave(engine, gone, "backup"),
        leave(engine, "mine", "partial"),
        leave(engine.with_name("engine2"), gone, "partial"),
    ]
    export_again(engine)
    assert names(engine.parent) == sorted(["engine", *(folder.name for folder in stays)])


def test_an_engine_that_a_killed_export_had_moved_away_comes_back(engine, gone):
    engine.rename(engine.with_name(f".engine.{gone}.old"))
    with pytest.raises(KeyboardInterrupt), staged_folder(engine, force=True):
        raise KeyboardInterrupt
    assert names(engine) == [MANIFEST_FILE, "old.bin"]
    assert names(engine.parent) == ["engine"]


def test_an_engine_that_has_come_back_is_not_replaced_without_force(engine, gone):
    engine.rename(engine.with_name(f".engine.{gone}.old"))
    with pytest.raises(GearError) as caught, staged_folder(engine, force=False):
        raise AssertionError("the export must not begin")
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    assert names(engine) == [MANIFEST_FILE, "old.bin"]


def refusal(output, *, force):
    with pytest.raises(GearError) as caught:
        check_output(output, force=force)
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    return caught.value


def test_an_engine_is_not_replaced_without_force(engine):
    assert refusal(engine, force=False).hint == "pass --force to replace it"


NOT_OURS = ("choose another folder", "name the folder that it points to")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_force_replaces_nothing_else(engine, tmp_path, kind):
    output = tmp_path / "precious"
    if kind == "file":
        output.write_text("mine")
    elif kind == "folder":
        output.mkdir()
        (output / "thesis.tex").write_text("mine")
    else:
        output.symlink_to(engine)
    assert refusal(output, force=True).hint in NOT_OURS
