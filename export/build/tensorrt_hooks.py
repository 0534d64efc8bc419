"""What TensorRT calls while it builds: the log and the progress monitor.

Their base classes are TensorRT's, so the classes are made once it is known which one is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TextIO

from gear_trt.export.build.tensorrt_messages import Step
from gear_trt.spec import GEAR_ATTENTION

_LAYER_MARK = "LayerType: "
_PLUGIN_LAYER = re.compile(
    rf"^\[?Name: ({re.escape(GEAR_ATTENTION.name)}\.\d+(?: \[profile \d+\])?)", re.MULTILINE
)
_LEAST_STEP = 0.005
"""Part of the build that is worth a word."""


def make_log(trt: Any, file: TextIO) -> Any:  # noqa: ANN401 - an untyped module
    """Return an `ILogger` that writes to a file.

    It has `errors`, the messages of errors, and `plugin_layers`, names of the plugin layers in
    TensorRT's list of the engine's layers.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        """Writes what is not verbose, and the engine's layers; keeps errors."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.plugin_layers: set[str] = set()

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if _LAYER_MARK in message:
                self.plugin_layers.update(_PLUGIN_LAYER.findall(message))
            elif severity == trt.ILogger.VERBOSE:
                return
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())
            file.write(f"{severity.name}: {message}\n")
            file.flush()

    return Log()


def make_monitor(trt: Any, tell: Callable[[Step], None]) -> Any:  # noqa: ANN401 - as above
    """Return an `IProgressMonitor` that tells which part of the whole build is done."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Adds up TensorRT's nested phases: a step of one is the whole of those below it."""

        def __init__(self) -> None:
            super().__init__()
            self._phases: dict[str, _Phase] = {}
            self._told = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._phases[phase] = _Phase(self._phases.get(parent or ""), max(steps, 1))
            self._report(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            self._phases[phase].done = step + 1
            self._report(phase)
            return True

        def phase_finish(self, phase: str) -> None:
            self._phases.pop(phase, None)

        def _report(self, phase: str) -> None:
            done = self._phases[phase].part()
            if done >= self._told + _LEAST_STEP:
                self._told = done
                tell(Step(phase=phase, done=done))

    return Monitor()


class _Phase:
    """A phase of the build: its steps, and where it lies in the one above."""

    def __init__(self, above: _Phase | None, steps: int) -> None:
        self.done = 0
        self._steps = steps
        if above is None:
            self._start, self._length = 0.0, 1.0
        else:
            self._start, self._length = above.part(), above._length / above._steps

    def part(self) -> float:
        """Part of the whole build that is done."""
        return min(self._start + self._length * self.done / self._steps, 1.0)
