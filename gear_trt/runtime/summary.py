"""What an engine folder holds and what its cache costs, for people and for `--json`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel

from gear_trt.runtime.footprint import buffer_bytes, fp16_bytes_per_token, page_bytes_per_token
from gear_trt.runtime.manifest import LayerFacts, Manifest, ModelFacts, TuningFacts
from gear_trt.spec import bits_per_element


class LayerGroup(BaseModel):
    """Layers of one geometry and one config.

    Attributes:
        layers: Indices.
        facts: What they have in common.
        bits_per_element: Bits that a page spends per K or V element, everything included.
    """

    layers: list[int]
    facts: LayerFacts
    bits_per_element: float


class EngineSummary(BaseModel):
    """Facts of an engine folder.

    Attributes:
        layout_hash: Page layout of the graph.
        versions: Package versions that made the folder.
        model: Facts of the model.
        has_key_scales: Whether the graph scales the channels of keys.
        tuning: How the configs of the layers were chosen, where `gear-export` tuned them.
        layer_groups: Layers that are alike.
        fp16_bytes_per_token: What a token takes in an FP16 cache.
        gear_bytes_per_token: What a token takes once it is compressed.
        buffer_bytes: Residual buffers of one sequence, all layers.
    """

    layout_hash: str
    versions: dict[str, str]
    model: ModelFacts
    has_key_scales: bool
    tuning: TuningFacts | None
    layer_groups: list[LayerGroup]
    fp16_bytes_per_token: int
    gear_bytes_per_token: float
    buffer_bytes: int

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Summarize an engine folder.

        Raises:
            GearError: those of `Manifest.read`.
        """
        manifest = Manifest.read(folder)
        return cls(
            layout_hash=manifest.layout_hash,
            versions=manifest.versions,
            model=manifest.model,
            has_key_scales=manifest.has_key_scales,
            tuning=manifest.tuning,
            layer_groups=_group(manifest.layers),
            fp16_bytes_per_token=fp16_bytes_per_token(manifest.layers),
            gear_bytes_per_token=page_bytes_per_token(manifest.layers),
            buffer_bytes=buffer_bytes(manifest.layers),
        )


def _group(layers: tuple[LayerFacts, ...]) -> list[LayerGroup]:
    groups: dict[LayerFacts, LayerGroup] = {}
    for index, facts in enumerate(layers):
        if facts not in groups:
            bits = bits_per_element(facts.config, facts.head_dim)
            groups[facts] = LayerGroup(layers=[], facts=facts, bits_per_element=bits)
        groups[facts].layers.append(index)
    return list(groups.values())
