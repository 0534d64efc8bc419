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
    """Every error a user can meet: its public code, the exit status it leads to, its meaning."""

    UNKNOWN_PRESET = ("E101", ExitStatus.FAILED, "there is no preset of this name")
    BAD_CONFIG = (
        "E102",
        ExitStatus.FAILED,
        "a compression config, a config file or a combination of options is not valid",
    )
    MISSING_FILE = ("E201", ExitStatus.FAILED, "a file or folder is not there, or lacks a part")
    DAMAGED_MODEL = (
        "E202",
        ExitStatus.FAILED,
        "a model's file cannot be read: cut off, altered, or not what its name says",
    )
    OUTPUT_EXISTS = ("E203", ExitStatus.FAILED, "the output is there already, and would be lost")
    NON_FINITE_WEIGHTS = ("E204", ExitStatus.FAILED, "a weight is NaN or infinite")
    NO_PERMISSION = ("E205", ExitStatus.FAILED, "a file or folder may not be read or written")
    NO_KV_CACHE = (
        "E301",
        ExitStatus.UNSUPPORTED,
        "the graph has no KV cache that the exporter knows",
    )
    UNSUPPORTED_MODEL = (
        "E302",
        ExitStatus.UNSUPPORTED,
        "the model, or its types, cannot be computed with",
    )
    VERIFICATION_FAILED = (
        "E303",
        ExitStatus.VERIFICATION,
        "what was written is not what was read; nothing is left of it",
    )
    BUILD_FAILED = (
        "E304",
        ExitStatus.FAILED,
        "TensorRT builds no engine; the folder is complete without it",
    )
    DAMAGED_ENGINE = (
        "E401",
        ExitStatus.FAILED,
        "an engine folder is damaged, or its parts do not fit together",
    )
    LAYOUT_MISMATCH = (
        "E402",
        ExitStatus.FAILED,
        "a folder, library or cache file is of another page layout or config",
    )
    BAD_CACHE_FILE = ("E403", ExitStatus.FAILED, "a cache file, or a cache in memory, is damaged")
    STALE_ENGINE = (
        "E404",
        ExitStatus.FAILED,
        "a TensorRT engine is older than the graph beside it",
    )
    EMPTY_PROMPT = ("E501", ExitStatus.FAILED, "there is nothing to run")
    CONTEXT_EXCEEDED = ("E502", ExitStatus.FAILED, "the tokens do not fit the context or the cache")
    BAD_REQUEST = ("E503", ExitStatus.FAILED, "an argument or a request is not valid")
    NON_FINITE_ACTIVATION = (
        "E504",
        ExitStatus.FAILED,
        "a key, value or logit is NaN, infinite, or too large for the cache",
    )
    QUEUE_FULL = ("E505", ExitStatus.FAILED, "too many requests wait already")
    CLOSED = ("E506", ExitStatus.FAILED, "the scheduler takes no more requests")
    MISSING_DEPENDENCY = ("E601", ExitStatus.ENVIRONMENT, "a package is missing, or lacks a part")
    MISSING_LIBRARY = (
        "E602",
        ExitStatus.ENVIRONMENT,
        "a library of kernels is missing, or does not load",
    )
    DISK_FULL = ("E603", ExitStatus.ENVIRONMENT, "there is no space left to write")
    NO_GPU = ("E604", ExitStatus.ENVIRONMENT, "there is no GPU, or no driver for it")
    UNSUPPORTED_VERSION = (
        "E605",
        ExitStatus.ENVIRONMENT,
        "a package is of a version that cannot be used here",
    )
    WRONG_GPU = ("E606", ExitStatus.ENVIRONMENT, "an engine was built for other GPUs")
    OUT_OF_MEMORY = ("E607", ExitStatus.ENVIRONMENT, "a cache or a step does not fit the memory")

    @property
    def code(self) -> str:
        """The public code, for instance ``E301``."""
        return self.value[0]

    @property
    def exit_status(self) -> ExitStatus:
        """The exit status of a command that ends with this error."""
        return self.value[1]

    @property
    def meaning(self) -> str:
        """What all errors of this code have in common (docs/errors.md)."""
        return self.value[2]


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
