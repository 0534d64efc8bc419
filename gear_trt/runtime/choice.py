"""Which inference engine runs a graph: what was asked for, or the fastest that there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from gear_trt.driver import count_gpus
from gear_trt.errors import ErrorCode, GearError

if TYPE_CHECKING:
    from gear_trt.runtime.backend import Backend
    from gear_trt.runtime.manifest import Manifest

log = logging.getLogger(__name__)


class BackendName(StrEnum):
    """Names of the backends (docs/runtime.md)."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    ONNXRUNTIME = "onnxruntime"


def backend_name(name: str) -> BackendName:
    """Return the backend of a name.

    Raises:
        GearError: `BAD_REQUEST`.
    """
    try:
        return BackendName(name)
    except ValueError:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"there is no backend {name}",
            hint=f"the backends are {', '.join(BackendName)}",
        ) from None


def open_backend(name: BackendName, folder: Path, manifest: Manifest, *, threads: int) -> Backend:
    """Load the graph of an engine folder.

    Args:
        name: What is to run it.
        folder: The engine folder.
        manifest: Its manifest.
        threads: CPU threads that one step may use.

    Raises:
        GearError: `MISSING_FILE`, `DAMAGED_ENGINE`, `LAYOUT_MISMATCH`, `MISSING_DEPENDENCY` or
            `MISSING_LIBRARY`; `NO_GPU`, `WRONG_GPU`, `UNSUPPORTED_VERSION` or `STALE_ENGINE` of a
            GPU backend.
    """
    if name is BackendName.AUTO:
        name = choose(folder, manifest)
    vocab_size = manifest.model.vocab_size
    if name is BackendName.TENSORRT:
        from gear_trt.runtime.tensorrt.backend import TensorRTBackend

        return TensorRTBackend.open(folder, manifest)
    with _needs_onnxruntime():
        if name is BackendName.ONNXRUNTIME_CUDA:
            from gear_trt.runtime.onnxruntime_cuda import OnnxRuntimeCudaBackend

            return OnnxRuntimeCudaBackend.open(folder, vocab_size=vocab_size, threads=threads)
        from gear_trt.runtime.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(folder, vocab_size=vocab_size, threads=threads)


def choose(folder: Path, manifest: Manifest) -> BackendName:
    """Return the fastest backend that folder and machine allow; why others do not is logged."""
    if not count_gpus():
        return BackendName.ONNXRUNTIME
    for name, check in _gpu_backends(folder, manifest):
        try:
            check()
        except GearError as error:
            log.warning("%s is not used: %s (%s)", name, error.message, error.hint)
        else:
            return name
    return BackendName.ONNXRUNTIME


def _gpu_backends(
    folder: Path, manifest: Manifest
) -> Iterator[tuple[BackendName, Callable[[], None]]]:
    if manifest.tensorrt is not None:
        yield BackendName.TENSORRT, lambda: _check_tensorrt(folder, manifest)
    yield BackendName.ONNXRUNTIME_CUDA, _check_onnxruntime_cuda


def _check_tensorrt(folder: Path, manifest: Manifest) -> None:
    from gear_trt.runtime.tensorrt.check import check

    check(folder, manifest)


def _check_onnxruntime_cuda() -> None:
    from gear_trt.runtime.requirements import require_onnxruntime_cuda

    with _needs_onnxruntime():
        require_onnxruntime_cuda()


def check_gpu_backends() -> Iterator[tuple[BackendName, GearError | None]]:
    """Yield every GPU backend, with why this machine cannot run it; None where it can."""
    from gear_trt.runtime.requirements import require_tensorrt

    for name, check in (
        (BackendName.TENSORRT, require_tensorrt),
        (BackendName.ONNXRUNTIME_CUDA, _check_onnxruntime_cuda),
    ):
        try:
            check()
        except GearError as error:
            yield name, error
        else:
            yield name, None


@contextmanager
def _needs_onnxruntime() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise GearError(
            ErrorCode.MISSING_DEPENDENCY,
            "onnxruntime is not installed",
            hint="pip install 'gear-trt[cpu]'",
        ) from None
