"""Scales of key channels for the caches that are judged on one model."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.torch.key_scales import measure_key_scales

_Channels = tuple[bool, int, int]


class KeyScales:
    """Measures once what several caches have in common.

    Args:
        model: In eval mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._measured: dict[tuple[_Channels, ...], list[Tensor | None]] = {}

    def of(self, compression: ModelConfig) -> list[Tensor | None]:
        """Return the scales [H, D] of every layer (`measure_key_scales`).

        Raises:
            GearError: Those of `measure_key_scales`.
        """
        layers = self._model.config.get_text_config(decoder=True).num_hidden_layers
        key = tuple(map(_channels, compression.of_layers(layers)))
        if key not in self._measured:
            self._measured[key] = measure_key_scales(self._model, compression)
        return self._measured[key]


def _channels(config: CompressionConfig) -> _Channels:
    """What of a config its scales depend on."""
    return config.scales_keys, config.group_size, config.sinks
