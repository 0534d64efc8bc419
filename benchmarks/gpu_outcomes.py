"""What comes of a backend that this machine may lack."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from gear_trt.errors import ErrorCode, ExitStatus, GearError

CANNOT = (ErrorCode.MISSING_DEPENDENCY, ErrorCode.MISSING_LIBRARY, ErrorCode.BUILD_FAILED)
"""Errors of a machine that lacks something, or of a TensorRT that does not support its GPU."""


@dataclass(frozen=True)
class Outcome:
    """What came of one backend.

    Attributes:
        kind: Of the rows.
        backend: Its name.
        verdict: `ran`, `failed`, or `not run` where the machine lacks something.
        text: Why it is so; or how right and how fast it was.
    """

    kind: ClassVar[str]

    backend: str
    verdict: str
    text: str

    @classmethod
    def of_failure(cls, backend: str, error: Exception, cannot: Collection[ErrorCode]) -> Self:
        """Return what an error means: `not run` for the codes in `cannot`."""
        if not isinstance(error, GearError):
            return cls(backend, "failed", f"{type(error).__name__}: {error}")
        verdict = "not run" if error.code in cannot else "failed"
        return cls(backend, verdict, f"{error.message} ({error.hint})")

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.backend}: {self.verdict}: {self.text}"

    def row(self) -> dict[str, Any]:
        """Return a row for benchmarks/results."""
        return {"kind": self.kind, **asdict(self)}


def report(outcomes: Sequence[Outcome]) -> int:
    """Print what came of every backend; see `ExitStatus` for what is returned."""
    print(*outcomes, sep="\n")
    is_right = all(outcome.verdict != "failed" for outcome in outcomes)
    return ExitStatus.OK if is_right else ExitStatus.FAILED
