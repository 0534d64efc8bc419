"""From an engine's file to an engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from gear_trt import tensorrt as plugins
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.tensorrt.check import BUILD_AGAIN, EngineFile

log = logging.getLogger(__name__)

_LEVELS = {
    "INTERNAL_ERROR": logging.DEBUG,  # what it says goes into the error that we raise
    "ERROR": logging.DEBUG,
    "WARNING": logging.INFO,
    "INFO": logging.DEBUG,
}


@dataclass(frozen=True)
class LoadedEngine:
    """An engine and what must live as long.

    Attributes:
        module: The Python module that loaded it (untyped, as all of it: a binding).
        engine: Its `ICudaEngine`.
        runtime: Its `Runtime`.
        logger: Its `ILogger`.
    """

    module: Any
    engine: Any
    runtime: Any
    logger: Any


def load(file: EngineFile) -> LoadedEngine:
    """Register the plugins and load an engine.

    Raises:
        GearError: `DAMAGED_ENGINE`, with TensorRT's own words; `MISSING_LIBRARY` where it refuses
            the plugins.
    """
    logger = make_logger(file.trt.module)
    runtime = file.trt.module.Runtime(logger)
    plugins.load(runtime.get_plugin_registry())
    logger.first_error = None
    engine = runtime.deserialize_cuda_engine(file.path.read_bytes())
    if engine is None:
        raise GearError(
            ErrorCode.DAMAGED_ENGINE,
            f"{file.trt.flavour} does not load {file.path}: "
            f"{logger.first_error or 'it does not say why'}",
            hint=BUILD_AGAIN,
        )
    return LoadedEngine(file.trt.module, engine, runtime, logger)


def make_logger(module: Any) -> Any:  # noqa: ANN401 - a binding
    """Return an `ILogger` that passes on to Python's log and keeps the first error."""

    class Logger(module.ILogger):  # type: ignore[misc] # a class of the binding
        def __init__(self) -> None:
            super().__init__()
            self.first_error: str | None = None

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity.name in ("ERROR", "INTERNAL_ERROR") and self.first_error is None:
                self.first_error = message.splitlines()[0]
            log.log(_LEVELS.get(severity.name, logging.DEBUG), "%s", message)

    return Logger()
