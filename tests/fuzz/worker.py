"""Runs one target over a range of seeds, in a process of its own (`tests.fuzz.run`).

Writes a line before and after every seed, so that whoever started it knows which one killed it.
"""

import contextlib
import os
import random
import resource
import sys
import tempfile
import traceback
from pathlib import Path

from tests.fuzz.targets import TARGETS, RefusedError

MEMORY_LIMIT = 6 << 30
"""Bytes of address space that a worker may have."""


def main(name: str, first: int, count: int) -> None:
    report = os.fdopen(os.dup(1), "w", buffering=1)
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # which reserves terabytes
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    with tempfile.TemporaryDirectory() as folder, silence():
        target = TARGETS[name](Path(folder))
        for seed in range(first, first + count):
            report.write(f"start {seed}\n")
            try:
                target.run(random.Random(seed))  # noqa: S311 - repeatable on purpose
                outcome = "accepted"
            except RefusedError:
                outcome = "refused"
            except Exception:
                last = traceback.format_exc().strip().replace("\n", " | ")
                outcome = f"failed {last[-1500:]}"
            report.write(f"{outcome}\n")


@contextlib.contextmanager
def silence():
    """Send what libraries print to nowhere."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        yield


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
