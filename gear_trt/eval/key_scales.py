"""Scales of key channels for the caches that are judged or tuned on one model."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.torch.key_scales import measure_key_scales

_Channels = tuple[int, int]


class KeyScales:
    """Measures once what layers of several caches have in common.

    A layer's scales depend on its own config alone, so those of any mix of layers are put together
    from what uniform configs measured.

    Args:
        model: In eval mode.
        scale_keys: False leaves keys as they are: no layer has scales.
    """

    def __init__(self, model: PreTrainedModel, *, scale_keys: bool = True) -> None:
        self._model = model
        self._scale_keys = scale_keys
        self._measured: dict[_Channels, list[Tensor | None]] = {}

    def of(self, compression: ModelConfig) -> list[Tensor | None]:
        """Return the scales [H, D] of every layer, None for all 1, as `GearCache` takes them.

        Runs the model where they have not been measured before.

        Raises:
            GearError: Those of `measure_key_scales`.
        """
        layers = self._model.config.get_text_config(decoder=True).num_hidden_layers
        configs = compression.of_layers(layers)
        return [self._of_layer(layer, config) for layer, config in enumerate(configs)]

    def _of_layer(self, layer: int, config: CompressionConfig) -> Tensor | None:
        if not (self._scale_keys and config.scales_keys):
            return None
        channels = (config.group_size, config.sinks)
        if channels not in self._measured:
            self._measured[channels] = measure_key_scales(self._model, config)
        return self._measured[channels][layer]
