"""Builds the TensorRT engine of an engine folder."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from pydantic import BaseModel, ConfigDict

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.build import tensorrt_child
from gear_trt.export.build.tensorrt_messages import (
    EVENT,
    Blocked,
    BuildRequest,
    Built,
    Failed,
    Step,
)
from gear_trt.export.build.tensorrt_plan import (
    TensorRTOptions,
    check_options,
    engine_limits,
    profiles,
    rtx_targets,
)
from gear_trt.export.source.source import Progress, silent
from gear_trt.runtime.manifest import ENGINE_FILE, MODEL_FILE, Manifest, TensorRTFacts
from gear_trt.tensorrt import plugin
from gear_trt.tensorrt.library import Flavour, import_tensorrt, loader_environment

LOG_FILE = f"{ENGINE_FILE}.log"
"""TensorRT's log of the build, the engine's layers included."""
LAYERS_FILE = f"{ENGINE_FILE}.json"
"""The engine inspector's JSON, where the machine that built the engine could also load it."""

_LAST_WORDS = 5


class BuildReport(BaseModel):
    """One build of a TensorRT engine.

    Attributes:
        facts: What the manifest says of the engine.
        plugin_layers: Plugin layers of both profiles, by TensorRT's list of the engine's layers;
            None where it names none.
        engine_bytes: Size of the engine.
        seconds: Wall time of parsing and building.
        cpu_seconds: CPU time of all threads of the process that built it.
        peak_memory_bytes: Largest resident size of that process.
    """

    model_config = ConfigDict(frozen=True)

    facts: TensorRTFacts
    plugin_layers: int | None
    engine_bytes: int
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int


def check_tensorrt(options: TensorRTOptions) -> None:
    """Refuse what cannot be built on this machine, before anything else is done.

    Raises:
        GearError: `MISSING_DEPENDENCY` for TensorRT itself, `MISSING_LIBRARY` or `LAYOUT_MISMATCH`
            for the plugin library, `BAD_CONFIG` for options that do not fit.
    """
    check_options(options)
    tensorrt = import_tensorrt(options.flavour)
    plugin.build_info()
    if options.flavour is Flavour.RTX:
        rtx_targets(tensorrt, options.compute_capabilities)


def build_engine(
    folder: str | Path, options: TensorRTOptions, *, progress: Progress = silent
) -> BuildReport:
    """Build the TensorRT engine of an engine folder; one that it had is replaced.

    The build runs in a process of its own. The folder gets the engine, its log, the plugin library
    where the engine does not carry it, and a manifest that says so.

    Args:
        folder: As `export_model` writes it.
        options: What to build.
        progress: Told TensorRT's phases, and which part of the whole is done.

    Returns:
        What was built, and what it took.

    Raises:
        GearError: As `check_tensorrt`; `MISSING_FILE`, `DAMAGED_ENGINE` or `LAYOUT_MISMATCH` for
            the folder, `BUILD_FAILED` with TensorRT's words, `VERIFICATION_FAILED` where a layer
            of the engine is not the plugin's.
        OSError: The disk is full, or the folder or the timing cache cannot be written.

    Example:
        >>> build_engine("out", TensorRTOptions(flavour=Flavour.RTX))  # doctest: +SKIP
    """
    folder = Path(folder)
    check_tensorrt(options)
    manifest = Manifest.read(folder)
    request = _request(folder, manifest, options)
    request.layers.unlink(missing_ok=True)
    progress(f"building with {options.flavour}")
    try:
        built = _run(request, progress)
        _check_layers(built, len(manifest.layers) * len(request.profiles), request.log)
        request.engine.replace(folder / ENGINE_FILE)
    finally:
        request.engine.unlink(missing_ok=True)
    facts = TensorRTFacts(
        flavour=options.flavour,
        version=built.version,
        graph_sha256=hashlib.sha256(request.model.read_bytes()).hexdigest(),
        compute_capabilities=built.compute_capabilities,
        version_compatible=options.builds_version_compatible,
        hardware_compatible=options.hardware_compatible,
        refittable=options.refit,
        streams_weights=options.weight_streaming,
        plugin=_place_plugin(folder, options),
        limits=engine_limits(manifest, options),
    )
    manifest.model_copy(update={"tensorrt": facts}).write(folder)
    return BuildReport(
        facts=facts,
        plugin_layers=built.plugin_layers,
        engine_bytes=(folder / ENGINE_FILE).stat().st_size,
        seconds=built.seconds,
        cpu_seconds=built.cpu_seconds,
        peak_memory_bytes=built.peak_memory_bytes,
    )


def _request(folder: Path, manifest: Manifest, options: TensorRTOptions) -> BuildRequest:
    return BuildRequest(
        model=folder / MODEL_FILE,
        engine=folder / f"{ENGINE_FILE}.partial",
        layers=folder / LAYERS_FILE,
        log=folder / LOG_FILE,
        plugin_library=plugin.library_path(),
        options=options,
        profiles=profiles(manifest, engine_limits(manifest, options)),
    )


def _run(request: BuildRequest, progress: Progress) -> Built:
    """Run the child process.

    Raises:
        GearError: What the child reports, or `BUILD_FAILED` where it ends without a word.
        OSError: What the child reports.
    """
    command = [sys.executable, "-P", "-m", tensorrt_child.__name__]
    with (
        loader_environment(request.options.flavour) as environment,
        TemporaryFile("w+") as asked,
        TemporaryFile("w+") as words,
    ):
        asked.write(request.model_dump_json())
        asked.seek(0)
        child = subprocess.Popen(  # noqa: S603 - our own module
            command,
            env=environment,
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
        )
        with child:
            try:
                outcome = _listen(child, f"building with {request.options.flavour}", progress)
            except BaseException:
                child.kill()
                raise
        if outcome is None:
            raise _died(child.returncode, words, request.log)
    if not isinstance(outcome, Built):
        raise outcome.error()
    return outcome


def _listen(
    child: subprocess.Popen[str], stage: str, progress: Progress
) -> Built | Failed | Blocked | None:
    """Pass progress on, and return the last event; None where there is none."""
    for line in child.stdout or ():
        event = EVENT.validate_json(line)
        if not isinstance(event, Step):
            return event
        progress(stage, event.done)
    return None


def _died(status: int, words: IO[str], log: Path) -> GearError:
    words.seek(0)
    last = [line.rstrip() for line in words if line.strip()][-_LAST_WORDS:]
    cause = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return GearError(
        ErrorCode.BUILD_FAILED,
        f"TensorRT ended the process that builds, with {cause}",
        hint=f"TensorRT's log is in {log}",
        detail="\n".join(last) or None,
    )


def _check_layers(built: Built, expected: int, log: Path) -> None:
    if built.plugin_layers not in (None, expected):
        raise GearError(
            ErrorCode.VERIFICATION_FAILED,
            f"the engine has {built.plugin_layers} GearAttention layers in place of {expected}",
            hint=f"please report it with {log}",
        )


def _place_plugin(folder: Path, options: TensorRTOptions) -> str | None:
    """Copy the plugin library into the folder, unless the engine carries it; return its name."""
    beside, library = folder / plugin.LIBRARY_NAME, plugin.library_path()
    if library.resolve() == beside.resolve():
        return None if options.embed_plugin else beside.name
    if options.embed_plugin:
        beside.unlink(missing_ok=True)
        return None
    shutil.copyfile(library, beside)
    return beside.name
