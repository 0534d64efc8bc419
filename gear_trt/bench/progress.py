"""How a benchmark tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, str, float], None]
"""Takes the stage, what happens in it, and which part of the whole is done, 0 to 1."""

Report = Callable[[str, float], None]
"""Takes what happens in a stage, and which part of the stage is done, 0 to 1."""


def silent(stage: str, detail: str, done: float) -> None:
    """Tell nobody."""


def part_of(progress: Progress, stage: str, index: int, count: int) -> Report:
    """Return what tells the detail of one of `count` stages, and which part of it is done."""

    def report(detail: str, done: float) -> None:
        progress(stage, detail, (index + done) / count)

    return report
