"""`gear.json`: what an engine folder says of itself. Exporters write it, the runtime checks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import CompressionConfig, layout_hash, page_layout
from gear_trt.spec.model_config import check_shared
from gear_trt.tensorrt.library import Flavour

MANIFEST_FILE = "gear.json"
MODEL_FILE = "model.onnx"
ENGINE_FILE = "model.engine"
"""A TensorRT engine, where the folder has one: `Manifest.tensorrt`."""
PREFILL_PROFILE, DECODE_PROFILE = 0, 1
"""Optimization profiles of that engine."""
SCHEMA_VERSION = 1

Size = Annotated[int, Field(ge=1, lt=2**31)]
"""A count that kernels take as a 32-bit integer."""


class LayerFacts(BaseModel):
    """One attention layer of the engine.

    Attributes:
        num_heads: N.
        num_kv_heads: H.
        head_dim: D.
        config: How this layer's cache is compressed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_heads: Size
    num_kv_heads: Size
    head_dim: Size
    config: CompressionConfig

    @model_validator(mode="after")
    def _have_a_layout(self) -> Self:
        page_layout(self.config, self.head_dim)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, no multiple of {self.num_kv_heads} KV heads"
            )
        return self


class ModelFacts(BaseModel):
    """What the runtime must know of the model.

    Attributes:
        source: File or folder name that was exported, for people.
        architecture: Hugging Face `model_type`, or None where unknown.
        vocab_size: Width of the logits.
        max_context: Longest sequence, tokens.
        eos_token_ids: Tokens that end a generation.
        pad_token_id: Token that fills unequal batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    architecture: str | None
    vocab_size: Size
    max_context: Size
    eos_token_ids: tuple[Annotated[int, Field(ge=0)], ...]
    pad_token_id: Annotated[int, Field(ge=0)]


class EngineLimits(BaseModel):
    """Largest sizes of a TensorRT engine's inputs; the smallest are 1.

    Attributes:
        max_batch: B, sequences of one call.
        max_new_tokens: S of one call in the prefill profile; the decode profile takes 1.
        max_pages: Columns of the page table.
        num_pages: Pages of each layer's pool.
        slots: Rows of each layer's residual buffer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch: Size
    max_new_tokens: Size
    max_pages: Size
    num_pages: Size
    slots: Size


class TensorRTFacts(BaseModel):
    """The TensorRT engine of the folder.

    Attributes:
        flavour: The one that built it, and that runs it.
        version: Version of the one that built it.
        graph_sha256: Of `model.onnx` as it was when the engine was built from it.
        compute_capabilities: GPUs that it was built for, for instance `8.6`.
        version_compatible: Later TensorRTs run it too.
        hardware_compatible: All GPUs from Ampere on run it.
        refittable: Its weights can be replaced.
        streams_weights: Its weights may stay in host memory (`weight_streaming_budget_v2`).
        plugin: File of the folder that is the plugin library; None: it is inside the engine.
        limits: Largest sizes of its inputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flavour: Flavour
    version: str
    graph_sha256: str
    compute_capabilities: tuple[str, ...]
    version_compatible: bool = False
    hardware_compatible: bool = False
    refittable: bool = False
    streams_weights: bool = False
    plugin: str | None
    limits: EngineLimits


class TuningFacts(BaseModel):
    """How the configs of the layers were chosen, for people.

    Attributes:
        target_bits: Most bits per element that were asked for; None where a divergence was.
        target_kl: Largest KL divergence that was asked for; None where bits were.
        text: Name of the text that they were measured on; None for one that the model wrote.
        tokens: Scored tokens of it.
        kl: Mean KL divergence on them from the uncompressed cache, nats.
        kl_error: Half the width of its 95 % confidence interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_bits: float | None = None
    target_kl: float | None = None
    text: str | None = None
    tokens: Size
    kl: float
    kl_error: float

    @property
    def outcome(self) -> str:
        """What was asked for and what was measured, in a line."""
        target = (
            f"a KL divergence of {self.target_kl:g}"
            if self.target_bits is None
            else f"{self.target_bits:g} bits per element"
        )
        return (
            f"to {target}: KL {self.kl:.5f} ± {self.kl_error:.5f} on {self.tokens:,} tokens of "
            f"{self.text or 'text that the model wrote'}"
        )


class Manifest(BaseModel):
    """The whole of `gear.json`.

    Attributes:
        schema_version: Version of this schema.
        layout_hash: Layout that the graph was exported for.
        versions: Package versions that made the folder, for people.
        model: Facts of the model.
        layers: Every attention layer, in the order of its index.
        has_key_scales: Whether the graph scales the channels of keys.
        tuning: How the configs of the layers were chosen, where `gear-export` tuned them.
        tensorrt: Of the TensorRT engine, where the folder has one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    layout_hash: str
    versions: dict[str, str]
    model: ModelFacts
    layers: Annotated[tuple[LayerFacts, ...], Field(min_length=1)]
    has_key_scales: bool = False
    tuning: TuningFacts | None = None
    tensorrt: TensorRTFacts | None = None

    @field_validator("layers")
    @classmethod
    def _share_positions(cls, layers: tuple[LayerFacts, ...]) -> tuple[LayerFacts, ...]:
        check_shared(layer.config for layer in layers)
        return layers

    def write(self, folder: Path) -> None:
        """Write `gear.json` into an engine folder."""
        (folder / MANIFEST_FILE).write_text(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check the manifest of an engine folder.

        Raises:
            GearError: `MISSING_FILE` where there is none, `DAMAGED_ENGINE` where it is not valid,
                `LAYOUT_MISMATCH` where a newer gear_trt or one with another layout exported it.
        """
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise GearError(
                ErrorCode.MISSING_FILE,
                f"{folder} is not an engine folder: it has no {MANIFEST_FILE}",
                hint="make one with `gear-export MODEL -o DIR`",
            )
        try:
            raw = json.loads(path.read_text())
            _refuse_newer(path, raw)
            manifest = cls.model_validate(_supported(raw))
        except (ValueError, ValidationError) as error:
            reason = str(error).splitlines()
            raise GearError(
                ErrorCode.DAMAGED_ENGINE,
                f"{path} is damaged: {reason[0]}",
                hint="export the model again with `gear-export`",
                detail="\n".join(reason[1:]) or None,
            ) from None
        if manifest.layout_hash != layout_hash():
            raise GearError(
                ErrorCode.LAYOUT_MISMATCH,
                f"{folder} was exported for page layout {manifest.layout_hash}, "
                f"this gear_trt has {layout_hash()}",
                hint="export the model again with this version, or install the version that "
                f"exported it ({manifest.versions.get('gear_trt', 'unknown')})",
            )
        return manifest


def _refuse_newer(path: Path, raw: object) -> None:
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise GearError(
            ErrorCode.LAYOUT_MISMATCH,
            f"{path} has schema version {version}, this gear_trt reads {SCHEMA_VERSION}",
            hint="upgrade gear_trt, or export the model again with this version",
        )


def _supported(raw: object) -> object:
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {version}, this gear_trt reads {SCHEMA_VERSION}")
    return raw
