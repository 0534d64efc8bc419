"""What a TensorRT engine is asked to be: the options, and the shapes of its two profiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gear_trt.errors import ErrorCode, GearError
from gear_trt.reference.cache import num_pages
from gear_trt.runtime.manifest import EngineLimits, LayerFacts, Manifest
from gear_trt.spec import graph, page_layout
from gear_trt.tensorrt.library import Flavour, TensorRT

CURRENT_GPU = "current"
"""Compute capability of the GPU of the machine that builds."""

_DECODED_TOKENS = 1
_OLDEST_GPU = 80
"""Compute capability, as in TensorRT-RTX's names, that the kernels need."""

Shape = tuple[int, ...]


class TensorRTOptions(BaseModel):
    """Options of one build.

    Attributes:
        flavour: TensorRT or TensorRT-RTX.
        max_batch: Sequences of one call at most.
        max_new_tokens: Tokens of one call of the prefill profile at most.
        compute_capabilities: TensorRT-RTX's GPUs, for instance `8.6`, or only `current`; empty
            means all that it offers and the kernels support. TensorRT builds for the GPU at hand.
        embed_plugin: Put the plugin library into the engine, in place of beside it.
        version_compatible: Later TensorRTs can run the engine too.
        hardware_compatible: All GPUs from Ampere on can run the engine.
        refit: The weights can be replaced later.
        weight_streaming: The weights may stay in host memory.
        builder_level: Optimization level, 0 to 5; None means TensorRT's own default.
        timing_cache: File to read kernel timings from and to write them to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flavour: Flavour
    max_batch: Annotated[int, Field(ge=1)] = 8
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    compute_capabilities: tuple[str, ...] = ()
    embed_plugin: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    refit: bool = False
    weight_streaming: bool = False
    builder_level: Annotated[int, Field(ge=0, le=5)] | None = None
    timing_cache: Path | None = None

    @property
    def builds_version_compatible(self) -> bool:
        """Whether later TensorRTs run the engine: only such engines of TensorRT carry plugins."""
        is_tensorrt = self.flavour is Flavour.TENSORRT
        return self.version_compatible or (self.embed_plugin and is_tensorrt)


def check_options(options: TensorRTOptions) -> None:
    """Refuse options that the one or the other TensorRT does not have.

    Raises:
        GearError: `BAD_CONFIG`.
    """
    if options.flavour is Flavour.TENSORRT and options.compute_capabilities:
        raise GearError(
            ErrorCode.BAD_CONFIG,
            "TensorRT builds for the GPU at hand: it takes no compute capability",
            hint="build for other GPUs with hardware_compatible, or with TensorRT-RTX",
        )
    foreign = [
        name
        for name in ("version_compatible", "hardware_compatible", "timing_cache")
        if options.flavour is Flavour.RTX and getattr(options, name)
    ]
    if foreign:
        raise GearError(
            ErrorCode.BAD_CONFIG,
            f"TensorRT-RTX has no {foreign[0].replace('_', '-')} option",
            hint="its engines are built for several compute capabilities, and it times no kernels",
        )


class ShapeRange(BaseModel):
    """Shapes of one input in one profile.

    Attributes:
        smallest: Smallest size of every axis.
        usual: The shape that kernels are chosen for.
        largest: Largest size of every axis.
    """

    model_config = ConfigDict(frozen=True)

    smallest: Shape
    usual: Shape
    largest: Shape


Profile = dict[str, ShapeRange]
"""Shapes of every input by its name."""


def engine_limits(manifest: Manifest, options: TensorRTOptions) -> EngineLimits:
    """Return the largest sizes of an engine whose every sequence may fill the model's context."""
    context = manifest.model.max_context
    pages = max(1, *(num_pages(context, layer.config) for layer in manifest.layers))
    return EngineLimits(
        max_batch=options.max_batch,
        max_new_tokens=min(options.max_new_tokens, context),
        max_pages=pages,
        num_pages=options.max_batch * pages,
        slots=options.max_batch,
    )


def profiles(manifest: Manifest, limits: EngineLimits) -> tuple[Profile, Profile]:
    """Return the prefill and the decode profile: `PREFILL_PROFILE`, `DECODE_PROFILE`."""
    prefill = _profile(manifest, limits, usual_batch=1, new_tokens=limits.max_new_tokens)
    decode = _profile(manifest, limits, usual_batch=limits.max_batch, new_tokens=_DECODED_TOKENS)
    return prefill, decode


def _profile(
    manifest: Manifest, limits: EngineLimits, *, usual_batch: int, new_tokens: int
) -> Profile:
    batch = (1, usual_batch, limits.max_batch)
    pages = (1, limits.max_pages, limits.max_pages)
    pool = (1, usual_batch * limits.max_pages, limits.num_pages)
    slots = (1, usual_batch, limits.slots)
    ranges = {
        graph.INPUT_IDS: _range(batch, (1, new_tokens, new_tokens)),
        graph.PAGE_TABLE: _range(batch, pages),
        **{name: _range(batch) for name in (graph.SLOTS, graph.PAST_LENGTHS, graph.NEW_LENGTHS)},
    }
    for index, layer in enumerate(manifest.layers):
        ranges[graph.page_pool_input(index)] = _range(pool, *map(_fixed, _page_shape(layer)))
        ranges[graph.residual_buffer_input(index)] = _range(slots, *map(_fixed, _row_shape(layer)))
    return ranges


def _range(*axes: tuple[int, int, int]) -> ShapeRange:
    smallest, usual, largest = zip(*axes, strict=True)
    return ShapeRange(smallest=smallest, usual=usual, largest=largest)


def _fixed(size: int) -> tuple[int, int, int]:
    return size, size, size


def _page_shape(layer: LayerFacts) -> Shape:
    """Shape of a page pool, but for its first axis."""
    return layer.num_kv_heads, page_layout(layer.config, layer.head_dim).page_words


def _row_shape(layer: LayerFacts) -> Shape:
    """Shape of a residual buffer, but for its first axis."""
    return layer.num_kv_heads, 2, layer.config.sinks + layer.config.chunk, layer.head_dim


def rtx_targets(tensorrt: TensorRT, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Return TensorRT-RTX's members for compute capabilities.

    Args:
        tensorrt: An imported TensorRT-RTX.
        wanted: For instance `8.6`, or only `current`; empty means all that the kernels support.

    Raises:
        GearError: `BAD_CONFIG` for one that it does not offer.
    """
    members = tensorrt.module.ComputeCapability.__members__
    offered = dict(_named(members))
    chosen = wanted or tuple(offered)
    if chosen == (CURRENT_GPU,):
        return {CURRENT_GPU: members["CURRENT"]}
    unknown = [target for target in chosen if target not in offered]
    if unknown:
        raise GearError(
            ErrorCode.BAD_CONFIG,
            f"TensorRT-RTX {tensorrt.version} builds for no compute capability {unknown[0]}",
            hint=f"it offers {', '.join(offered)}, or {CURRENT_GPU} alone for the GPU at hand",
        )
    return {target: offered[target] for target in chosen}


def _named(members: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield members like SM86 as `8.6`; the kernels need Ampere or later."""
    for name, member in members.items():
        digits = name.removeprefix("SM")
        if digits.isdigit() and int(digits) >= _OLDEST_GPU:
            yield f"{digits[:-1]}.{digits[-1]}", member
