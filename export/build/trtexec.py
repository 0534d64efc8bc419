"""The command line of `trtexec` and of TensorRT-RTX's `tensorrt_rtx` that builds an engine."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from gear_trt.export.build.tensorrt_plan import (
    CURRENT_GPU,
    Profile,
    Shape,
    TensorRTOptions,
    check_options,
    engine_limits,
    profiles,
)
from gear_trt.runtime.manifest import ENGINE_FILE, MODEL_FILE, Manifest
from gear_trt.tensorrt.library import Flavour
from gear_trt.tensorrt.plugin import LIBRARY_NAME

_PROGRAMS = {Flavour.TENSORRT: "trtexec", Flavour.RTX: "tensorrt_rtx"}


def trtexec_command(folder: str | Path, options: TensorRTOptions) -> str:
    """Return the command that builds an engine as `build_engine` does.

    It is to be run in the engine folder, with the plugin library in it. Where the options name no
    compute capability, `tensorrt_rtx` takes its own default.

    Args:
        folder: As `export_model` writes it.
        options: As for `build_engine`.

    Raises:
        GearError: `BAD_CONFIG` for options that do not fit; as `Manifest.read` for the folder.
    """
    check_options(options)
    manifest = Manifest.read(Path(folder))
    limits = engine_limits(manifest, options)
    return shlex.join([_PROGRAMS[options.flavour], *_flags(options, profiles(manifest, limits))])


def _flags(options: TensorRTOptions, both: tuple[Profile, Profile]) -> Iterator[str]:
    yield f"--onnx={MODEL_FILE}"
    yield f"--saveEngine={ENGINE_FILE}"
    yield "--skipInference"
    yield "--profilingVerbosity=detailed"
    yield "--preview=+aliasedPluginIO1003"
    yield f"--dynamicPlugins={LIBRARY_NAME}"
    if options.embed_plugin:
        yield f"--setPluginsToSerialize={LIBRARY_NAME}"
    if options.flavour is Flavour.TENSORRT:
        yield from _tensorrt_flags(options)
    elif options.compute_capabilities == (CURRENT_GPU,):
        yield "--useGpu"
    elif options.compute_capabilities:
        targets = (target.replace(".", "") for target in options.compute_capabilities)
        yield f"--computeCapabilities={','.join(targets)}"
    if options.refit:
        yield "--refit"
    if options.weight_streaming:
        yield "--allowWeightStreaming"
    if options.builder_level is not None:
        yield f"--builderOptimizationLevel={options.builder_level}"
    for index, profile in enumerate(both):
        yield f"--profile={index}"
        yield f"--minShapes={_spec({name: item.smallest for name, item in profile.items()})}"
        yield f"--optShapes={_spec({name: item.usual for name, item in profile.items()})}"
        yield f"--maxShapes={_spec({name: item.largest for name, item in profile.items()})}"


def _tensorrt_flags(options: TensorRTOptions) -> Iterator[str]:
    yield "--stronglyTyped"
    if options.builds_version_compatible:
        yield "--versionCompatible"
    if options.hardware_compatible:
        yield "--hardwareCompatibilityLevel=ampere+"
    if options.timing_cache is not None:
        yield f"--timingCacheFile={options.timing_cache}"


def _spec(shapes: Mapping[str, Shape]) -> str:
    """Write shapes; where those of all layers are alike, once for all of them."""
    by_input: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        by_input.setdefault(name.partition(".")[0], {})[name] = shape
    return ",".join(
        f"{name}:{'x'.join(map(str, shape))}"
        for stem, group in by_input.items()
        for name, shape in _merged(stem, group).items()
    )


def _merged(stem: str, group: dict[str, Shape]) -> dict[str, Shape]:
    first, *others = group.values()
    is_alike = bool(others) and all(shape == first for shape in others)
    return {f"{stem}.*": first} if is_alike else group
