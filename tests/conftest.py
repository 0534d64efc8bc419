"""How tests share a machine: `make test` runs a worker of pytest-xdist on every core."""

import os
from pathlib import Path

import hypothesis
import pytest

TESTS = Path(__file__).parent
LONGEST_FIRST = ("e2e", "export")
"""Packages that take minutes; what begins last should be short."""
SHARED = {"gguf", "sources"}
"""Session fixtures behind which is a minute's work: tests of a package that use them are a group,
so that one worker does it."""

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny, and torch's threads spin
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in a hook of its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order tests, and say which of them one worker has to run."""
    items.sort(key=_turn)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _turn(item: pytest.Item) -> int:
    package = item.path.parent.name
    return LONGEST_FIRST.index(package) if package in LONGEST_FIRST else len(LONGEST_FIRST)


def _group(item: pytest.Item) -> str:
    """A module, whose fixtures are made once, or a package that shares more."""
    is_shared = not SHARED.isdisjoint(getattr(item, "fixturenames", ()))
    return str((item.path.parent if is_shared else item.path).relative_to(TESTS))
