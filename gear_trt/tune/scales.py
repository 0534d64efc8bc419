"""Scales of key channels for layers of unlike configs, as an engine with all of them has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from gear_trt.eval.key_scales import KeyScales
from gear_trt.spec import CompressionConfig, ModelConfig


class LayerScales:
    """Scales of every layer by its group size: options differ in nothing else that scales see.

    Args:
        model: In eval mode.
        configs: Those that layers may get, all with the same sinks. Keys in groups of another size
            are not scaled: without any config, none are.

    Raises:
        GearError: Those of `measure_key_scales`.
    """

    def __init__(self, model: PreTrainedModel, configs: Iterable[CompressionConfig]) -> None:
        scales = KeyScales(model)
        self._by_group_size = {
            config.group_size: scales.of(ModelConfig(config))
            for config in configs
            if config.scales_keys
        }

    def of(self, layer: int, config: CompressionConfig) -> Tensor | None:
        """Return the scales [H, D] of a layer that gets a config; None for all 1."""
        by_layer = self._by_group_size.get(config.group_size)
        return by_layer[layer] if by_layer and config.scales_keys else None

    def of_layers(self, configs: Sequence[CompressionConfig]) -> list[Tensor | None]:
        """Return the scales of all layers, as `GearCache` takes them."""
        return [self.of(layer, config) for layer, config in enumerate(configs)]
