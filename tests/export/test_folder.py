"""An engine folder appears whole or not at all, and replaces nothing but its like."""

import errno

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
