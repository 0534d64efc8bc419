"""Errors that a user can act on: a code, one line that names the cause, and a remedy."""

from __future__ import annotations

from enum import Enum


class ExitStatus(int, Enum):
    """Process exit codes of every command (documented in the README)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    VERIFICATION = 3
    ENVIRONMENT = 4
    UNSUPPORTED = 5
    INTERNAL = 70
    INTERRUPTED = 130


class ErrorCode(Enum):
    """Every error a user can meet: its public code and the exit status it leads to."""

    UNKNOWN_PRESET = ("E101", ExitStatus.FAILED)
    BAD_CONFIG = ("E102", ExitStatus.FAILED)
    MISSING_FILE = ("E201", ExitStatus.FAILED)
    DAMAGED_MODEL = ("E202", ExitStatus.FAILED)
    OUTPUT_EXISTS = ("E203", ExitStatus.FAILED)
    NON_FINITE_WEIGHTS = ("E204", ExitStatus.FAILED)
    NO_PERMISSION = ("E205", ExitStatus.FAILED)
    NO_KV_CACHE = ("E301", ExitStatus.UNSUPPORTED)
    UNSUPPORTED_MODEL = ("E302", ExitStatus.UNSUPPORTED)
    VERIFICATION_FAILED = ("E303", ExitStatus.VERIFICATION)
    BUILD_FAILED = ("E304", ExitStatus.FAILED)
    DAMAGED_ENGINE = ("E401", ExitStatus.FAILED)
    LAYOUT_MISMATCH = ("E402", ExitStatus.FAILED)
    BAD_CACHE_FILE = ("E403", ExitStatus.FAILED)
    STALE_ENGINE = ("E404", ExitStatus.FAILED)
    EMPTY_PROMPT = ("E501", ExitStatus.FAILED)
    CONTEXT_EXCEEDED = ("E502", ExitStatus.FAILED)
    BAD_REQUEST = ("E503", ExitStatus.FAILED)
    NON_FINITE_ACTIVATION = ("E504", ExitStatus.FAILED)
    QUEUE_FULL = ("E505", ExitStatus.FAILED)
    CLOSED = ("E506", ExitStatus.FAILED)
    MISSING_DEPENDENCY = ("E601", ExitStatus.ENVIRONMENT)
    MISSING_LIBRARY = ("E602", ExitStatus.ENVIRONMENT)
    DISK_FULL = ("E603", ExitStatus.ENVIRONMENT)
    NO_GPU = ("E604", ExitStatus.ENVIRONMENT)
    UNSUPPORTED_VERSION = ("E605", ExitStatus.ENVIRONMENT)
    WRONG_GPU = ("E606", ExitStatus.ENVIRONMENT)
    OUT_OF_MEMORY = ("E607", ExitStatus.ENVIRONMENT)

    @property
    def code(self) -> str:
        """The public code, for instance ``E301``."""
        return self.value[0]

    @property
    def exit_status(self) -> ExitStatus:
        """The exit status of a command that ends with this error."""
        return self.value[1]


class GearError(Exception):
    """A failure that the user can act on; commands print it without a traceback.

    Args:
        code: Which failure it is.
        message: One line that names the cause.
        hint: One line that says what to do.
        detail: Optional further lines, for instance the nearest near-miss of a rewrite.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, hint: str, detail: str | None = None
    ) -> None:
        super().__init__(f"[{code.code}] {message} (hint: {hint})")
        self.code = code
        self.message = message
        self.hint = hint
        self.detail = detail


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text, or its type where it has no text."""
    return str(error).partition("\n")[0] or type(error).__name__
