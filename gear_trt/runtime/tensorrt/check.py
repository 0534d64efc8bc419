"""Whether a folder's engine can run here: every reason against it, before anything is loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gear_trt.driver import Gpu
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.manifest import ENGINE_FILE, MODEL_FILE, Manifest, TensorRTFacts
from gear_trt.runtime.requirements import require_gpu, require_plugins
from gear_trt.tensorrt.library import TensorRT, import_tensorrt

BUILD_AGAIN = "build the engine again, for this machine's GPU and with its TensorRT"
_AMPERE = (8, 0)
"""GPUs from here on run engines that were built to be compatible."""


@dataclass(frozen=True)
class EngineFile:
    """An engine that nothing speaks against.

    Attributes:
        path: Its file.
        trt: The TensorRT that loads it.
    """

    path: Path
    trt: TensorRT


def check(folder: Path, manifest: Manifest) -> EngineFile:
    """Check that an engine folder's TensorRT engine can be loaded on this machine.

    Args:
        folder: The engine folder.
        manifest: Its manifest.

    Raises:
        GearError: `MISSING_FILE` where the folder has no engine, `STALE_ENGINE` where it was built
            from another graph, `BAD_REQUEST` where it brings code along, `NO_GPU`, `WRONG_GPU`,
            `MISSING_DEPENDENCY` without TensorRT or a PyTorch with CUDA, `UNSUPPORTED_VERSION`,
            `MISSING_LIBRARY` or `LAYOUT_MISMATCH` of the plugin library.
    """
    facts = manifest.tensorrt
    if facts is None:
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"{folder} holds no TensorRT engine",
            hint="build one with `gear-export --tensorrt`, or choose another backend",
        )
    path = folder / ENGINE_FILE
    if not path.is_file():
        raise GearError(ErrorCode.MISSING_FILE, f"{folder} has no {ENGINE_FILE}", hint=BUILD_AGAIN)
    _check_origin(folder, facts)
    _check_code(path, facts)
    _check_gpu(facts, require_gpu())
    trt = import_tensorrt(facts.flavour)
    _check_version(facts, trt)
    require_plugins()
    return EngineFile(path, trt)


def _check_origin(folder: Path, facts: TensorRTFacts) -> None:
    digest = hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()
    if digest != facts.graph_sha256:
        raise GearError(
            ErrorCode.STALE_ENGINE,
            f"{folder / ENGINE_FILE} is stale: it was built from another {MODEL_FILE}",
            hint="build the engine again",
        )


def _check_code(path: Path, facts: TensorRTFacts) -> None:
    """An engine folder is data: the plugins that run are those that are installed."""
    brought = "the plugin library" if facts.plugin is None else "a runtime"
    if facts.plugin is None or facts.version_compatible:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{path} has {brought} inside, and gear_trt runs no code from an engine folder",
            hint="build it with the plugin library beside it and not version compatible, or load "
            "it with TensorRT itself",
        )


def _check_gpu(facts: TensorRTFacts, gpu: Gpu) -> None:
    if gpu.compute_capability in facts.compute_capabilities:
        return
    if facts.hardware_compatible and gpu.capability >= _AMPERE:
        return
    raise GearError(
        ErrorCode.WRONG_GPU,
        f"the engine is for compute capability {', '.join(facts.compute_capabilities)}; "
        f"{gpu.name} has {gpu.compute_capability}",
        hint="build the engine for this GPU, or run with `--backend onnxruntime-cuda`",
    )


def _check_version(facts: TensorRTFacts, trt: TensorRT) -> None:
    if _release(trt.version) != _release(facts.version):
        raise GearError(
            ErrorCode.UNSUPPORTED_VERSION,
            f"the engine was built with {facts.flavour} {facts.version}, "
            f"here is version {trt.version}",
            hint=f"install version {facts.version}, or build the engine again with this one",
        )


def _release(version: str) -> list[str]:
    return version.split(".")[:3]
