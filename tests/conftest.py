"""How tests share a machine: `make test` runs a worker of pytest-xdist on every core."""

import os
from pathlib import PurePosixPath

import hypothesis
import pytest

LONG = ("e2e", "export")
"""Packages that take minutes, much of it for fixtures that their modules share: one worker runs all
of such a package. They begin first, as what begins last should be short."""

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny, and torch's threads spin
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


def pytest_collection_modifyitems(items):
    """Put the long packages first."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out whole modules, whose fixtures are then made once, or whole packages."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            module = PurePosixPath(nodeid.partition("::")[0])
            return str(module.parent if module.parent.name in LONG else module)

    return Scheduler(config, log)
