"""What an export found and did: `report.json`, `report.md`, the object of `gear-export --json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.build.tensorrt import BuildReport
from gear_trt.export.passes.sites import KvSite, NearMiss
from gear_trt.export.source.companions import TOKENIZER_FILE
from gear_trt.runtime.footprint import fp16_bytes_per_token, page_bytes_per_token
from gear_trt.runtime.manifest import LayerFacts, ModelFacts, TuningFacts
from gear_trt.spec import CompressionConfig

REPORT_FILE = "report.json"
MARKDOWN_FILE = "report.md"
FP16_BITS = 16
REPORT_SCHEMA = "gear.export/1"

_REPORTED_PACKAGES = ("gear-trt", "onnx", "onnx-ir", "onnxscript", "torch", "transformers")


class SiteReport(BaseModel):
    """One attention layer of the source graph.

    Attributes:
        layer: Index, in the order in which layers run.
        form: How the source graph writes it.
        node: Node that computes its output.
        dtype: Type of its activations; as the rest, None where the layer cannot be routed.
        num_heads: N.
        num_kv_heads: H.
        head_dim: D.
        scale: Factor of q·k.
        softcap: Cap of the scores, 0 for none.
        sliding_window: Newest tokens that a query sees, 0 for all.
        reason: The check that failed, where it cannot be routed.
        config: How its cache is compressed; None where the model cannot be routed.
    """

    model_config = ConfigDict(frozen=True)

    layer: int
    form: str
    node: str
    dtype: str | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    scale: float | None = None
    softcap: float | None = None
    sliding_window: int | None = None
    reason: str | None = None
    config: CompressionConfig | None = None

    @classmethod
    def of(
        cls, layer: int, item: KvSite | NearMiss, config: CompressionConfig | None = None
    ) -> Self:
        """Describe what `find_kv` found."""
        node = str(item.node.name)
        if isinstance(item, NearMiss):
            return cls(layer=layer, form=item.form, node=node, reason=item.reason)
        dtype = str(np.dtype(item.dtype.numpy()))
        facts = vars(item.facts)
        return cls(layer=layer, form=item.form, node=node, dtype=dtype, **facts, config=config)


class CacheCost(BaseModel):
    """What the compressed cache takes.

    Attributes:
        bits_per_element: Bits that pages spend per K or V element, everything included.
        bytes_per_token: Of all layers, once a token is compressed.
        fp16_bytes_per_token: The same in an FP16 cache.
    """

    model_config = ConfigDict(frozen=True)

    bits_per_element: float
    bytes_per_token: float
    fp16_bytes_per_token: int

    @classmethod
    def of(cls, layers: Sequence[LayerFacts]) -> Self:
        """Compute the cost of a model's layers."""
        gear, fp16 = page_bytes_per_token(layers), fp16_bytes_per_token(layers)
        return cls(
            bits_per_element=FP16_BITS * gear / fp16,
            bytes_per_token=gear,
            fp16_bytes_per_token=fp16,
        )


class ExportReport(BaseModel):
    """One export, or one dry run.

    Attributes:
        source: What was exported.
        output: The engine folder; None for a dry run.
        config: How the caches of layers without a config of their own are compressed.
        model: Facts of the model; None, as the next, where it cannot be routed.
        cache: What its cache takes.
        sites: Every attention layer.
        nodes_before: Nodes of the source graph.
        nodes_after: Nodes of the exported graph; None where it cannot be routed.
        scaled_layers: Layers whose key channels are scaled.
        tuning: How the configs of the layers were chosen, where they were tuned.
        file_bytes: Size of every file of the engine folder; empty for a dry run.
        seconds: Time of every stage.
        versions: Of the packages that took part.
        tensorrt: How the TensorRT engine was built, where the folder has one.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    output: str | None = None
    config: CompressionConfig
    model: ModelFacts | None = None
    cache: CacheCost | None = None
    sites: tuple[SiteReport, ...]
    nodes_before: int
    nodes_after: int | None = None
    scaled_layers: int = 0
    tuning: TuningFacts | None = None
    file_bytes: dict[str, int] = {}
    seconds: dict[str, float] = {}
    versions: dict[str, str]
    tensorrt: BuildReport | None = None

    @property
    def routable(self) -> bool:
        """Whether there are attention layers, and none that cannot be routed."""
        return bool(self.sites) and all(site.reason is None for site in self.sites)

    @property
    def is_bfloat16(self) -> bool:
        """Whether attention reads and writes bfloat16, which no CPU engine computes with."""
        return any(site.dtype == "bfloat16" for site in self.sites)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the engine folder can read and write text."""
        return TOKENIZER_FILE in self.file_bytes

    def write(self, folder: Path) -> None:
        """Write `report.json` and `report.md` into an engine folder."""
        from gear_trt.export.report_markdown import to_markdown

        fields = {"schema": REPORT_SCHEMA, **self.model_dump(mode="json")}
        (folder / REPORT_FILE).write_text(json.dumps(fields, indent=2) + "\n")
        (folder / MARKDOWN_FILE).write_text(to_markdown(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the `report.json` of an engine folder.

        Raises:
            GearError: `MISSING_FILE`, `DAMAGED_ENGINE`.
        """
        path = folder / REPORT_FILE
        try:
            fields = json.loads(path.read_text())
            return cls.model_validate(fields)
        except FileNotFoundError:
            code, reason = ErrorCode.MISSING_FILE, ["it is not there"]
        except ValueError as error:
            code, reason = ErrorCode.DAMAGED_ENGINE, str(error).splitlines()
        raise GearError(
            code,
            f"cannot read {path}: {reason[0]}",
            hint="export the model again with this version of `gear-export`",
            detail="\n".join(reason[1:]) or None,
        )


def describe(
    found: Sequence[KvSite | NearMiss], configs: Sequence[CompressionConfig]
) -> tuple[SiteReport, ...]:
    """Return the report of every layer.

    Args:
        found: What `find_kv` found.
        configs: How their caches are compressed; empty where the model cannot be routed.
    """
    pairs = zip_longest(found, configs)
    return tuple(SiteReport.of(layer, *pair) for layer, pair in enumerate(pairs))


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that take part in an export."""
    versions = {}
    for package in _REPORTED_PACKAGES:
        try:
            versions[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            continue
    return versions
