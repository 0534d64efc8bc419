"""`gear.json`: what an engine folder says of itself. Exporters write it, the runtime checks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import CompressionConfig, layout_hash
from gear_trt.spec.model_config import check_shared

MANIFEST_FILE = "gear.json"
MODEL_FILE = "model.onnx"
SCHEMA_VERSION = 1


class LayerFacts(BaseModel):
    """One attention layer of the engine.

    Attributes:
        num_heads: N.
        num_kv_heads: H.
        head_dim: D.
        config: How this layer's cache is compressed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_heads: int
    num_kv_heads: int
    head_dim: int
    config: CompressionConfig


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
    vocab_size: int
    max_context: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int


class TensorRtFacts(BaseModel):
    """The TensorRT engine of a folder, and what it can be loaded with.

    Attributes:
        file: Name of the engine in the folder.
        library: What built it: `tensorrt` or `tensorrt_rtx`.
        version: Of that library.
        compute_capabilities: Of the GPUs that it runs on, for instance `9.0`.
        model_digest: SHA-256 of the `model.onnx` that it was built from, in hexadecimal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    model_digest: str


class Manifest(BaseModel):
    """The whole of `gear.json`.

    Attributes:
        schema_version: Version of this schema.
        layout_hash: Layout that the graph was exported for.
        versions: Package versions that made the folder, for people.
        model: Facts of the model.
        layers: Every attention layer, in the order of its index.
        tensorrt: The TensorRT engine; None where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    layout_hash: str
    versions: dict[str, str]
    model: ModelFacts
    layers: tuple[LayerFacts, ...]
    tensorrt: TensorRtFacts | None = None

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
