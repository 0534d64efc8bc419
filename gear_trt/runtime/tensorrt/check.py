"""Whether a folder's engine can run here: every reason against it, before anything is loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.manifest import MODEL_FILE, Manifest, TensorRtFacts
from gear_trt.runtime.requirements import require_gpu, require_plugins
from gear_trt.tensorrt.library import import_library

BUILD_AGAIN = "build the engine again, for this machine's GPU and with its TensorRT"
_OLDEST = {"tensorrt": (10, 9), "tensorrt_rtx": (1, 7)}
"""Versions that the plugin library supports, from these on."""


@dataclass(frozen=True)
class EngineFile:
    """An engine that nothing speaks against.

    Attributes:
        path: Its file.
        facts: What the manifest says of it.
        trt: The module that loads it (untyped: a binding).
    """

    path: Path
    facts: TensorRtFacts
    trt: Any


def check(folder: Path, manifest: Manifest) -> EngineFile:
    """Check that an engine folder's TensorRT engine can be loaded on this machine.

    Args:
        folder: The engine folder.
        manifest: Its manifest.

    Raises:
        GearError: `MISSING_FILE` where the folder has no engine, `STALE_ENGINE` where it was built
            from another graph, `NO_GPU`, `WRONG_GPU`, `MISSING_DEPENDENCY` without TensorRT or a
            PyTorch with CUDA, `UNSUPPORTED_VERSION`, `MISSING_LIBRARY` or `LAYOUT_MISMATCH` of the
            plugin library.
    """
    facts = manifest.tensorrt
    if facts is None:
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"{folder} holds no TensorRT engine",
            hint="build one with `gear-export`, or run with `--backend onnxruntime-cuda`",
        )
    path = folder / facts.file
    if not path.is_file():
        raise GearError(ErrorCode.MISSING_FILE, f"{folder} has no {facts.file}", hint=BUILD_AGAIN)
    _check_origin(folder, facts)
    _check_gpu(facts)
    trt = import_library(facts.library)
    _check_version(facts, trt.__version__)
    require_plugins()
    return EngineFile(path, facts, trt)


def _check_origin(folder: Path, facts: TensorRtFacts) -> None:
    digest = hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()
    if digest != facts.model_digest:
        raise GearError(
            ErrorCode.STALE_ENGINE,
            f"{folder / facts.file} is stale: it was built from another {MODEL_FILE}",
            hint="build the engine again",
        )


def _check_gpu(facts: TensorRtFacts) -> None:
    gpu = require_gpu()
    capability = "{}.{}".format(*gpu.capability)
    if capability not in facts.compute_capabilities:
        raise GearError(
            ErrorCode.WRONG_GPU,
            f"the engine is for compute capability {', '.join(facts.compute_capabilities)}; "
            f"{gpu.name} has {capability}",
            hint="build the engine for this GPU, or run with `--backend onnxruntime-cuda`",
        )


def _check_version(facts: TensorRtFacts, version: str) -> None:
    oldest = _OLDEST[facts.library]
    if _numbers(version)[:2] < oldest:
        raise GearError(
            ErrorCode.UNSUPPORTED_VERSION,
            f"{facts.library} {version} is too old",
            hint=f"install version {'.'.join(map(str, oldest))} or later",
        )
    if _numbers(version)[:3] != _numbers(facts.version)[:3]:
        raise GearError(
            ErrorCode.UNSUPPORTED_VERSION,
            f"the engine was built with {facts.library} {facts.version}, this is {version}",
            hint=f"install version {facts.version}, or build the engine again with this one",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in takewhile(str.isdigit, version.split(".")))
