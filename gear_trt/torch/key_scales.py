"""Scales of key channels of a transformers model, measured in one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache

from gear_trt.reference.key_scales import sequence_scales
from gear_trt.spec import DEFAULT_PRESET, CompressionConfig, ModelConfig
from gear_trt.spec.calibration import calibration_tokens
from gear_trt.torch.cache import ATTENTION_NAME, layer_windows, model_config
from gear_trt.torch.layer import GearLayer
from gear_trt.torch.padding import NewTokens
from gear_trt.torch.support import check_architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MeasuringLayer(GearLayer):  # type: ignore[no-untyped-call]
    """A layer that holds its tokens uncompressed and measures their channels.

    Attributes:
        key_scales: [H, D] float32; None before a forward pass, and where scales change nothing:
            without rotated codes of keys, or where the tokens do not fill a group.

    Args:
        index: Which layer of the model it is.
        sliding_window: As in `GearLayer`.
        compression: How the layer will be compressed.
    """

    def __init__(self, index: int, sliding_window: int, compression: CompressionConfig) -> None:
        super().__init__(index, CompressionConfig.preset("exact"), sliding_window)
        self.key_scales: Tensor | None = None
        self._compression = compression

    def attend(
        self,
        query_BSND: Tensor,
        key_BSHD: Tensor,
        value_BSHD: Tensor,
        new: NewTokens,
        *,
        scale: float,
        softcap: float,
    ) -> Tensor:
        """Attend to a whole sequence exactly (`GearLayer.attend`); fill in `key_scales`."""
        queries_NTD, keys_HTD = (_first(side) for side in (query_BSND, key_BSHD))
        scales_HD = sequence_scales(queries_NTD, keys_HTD, self._compression)
        self.key_scales = None if scales_HD is None else torch.from_numpy(scales_HD)
        return super().attend(query_BSND, key_BSHD, value_BSHD, new, scale=scale, softcap=softcap)


def _first(tensor_BSHD: Tensor) -> NDArray[np.float32]:
    """Return [heads, T, D] of the first sequence."""
    return tensor_BSHD[0].transpose(0, 1).float().cpu().numpy()


@torch.no_grad()
def measure_key_scales(
    model: PreTrainedModel,
    compression: ModelConfig | CompressionConfig | str = DEFAULT_PRESET,
) -> list[Tensor | None]:
    """Return the scales of key channels that keep the most of a model's scores.

    Runs the model over a few hundred random tokens (`calibration_tokens`), the same every time.

    Args:
        model: In eval mode; its attention implementation is afterwards what it was.
        compression: What `GearCache` will get: a preset's name, a config, or those of all layers.

    Returns:
        Of each layer [H, D] float32 on the CPU, or None where scales would change nothing.

    Raises:
        GearError: `UNSUPPORTED_MODEL`, `UNKNOWN_PRESET` or `BAD_CONFIG`, as in `GearCache`.
    """
    check_architecture(model.config)
    windows = layer_windows(model.config)
    configs = model_config(compression).of_layers(len(windows))
    layers = [
        MeasuringLayer(index, *settings)
        for index, settings in enumerate(zip(windows, configs, strict=True))
    ]
    text = model.config.get_text_config(decoder=True)
    tokens_1T = torch.from_numpy(calibration_tokens(text.vocab_size, text.max_position_embeddings))
    used = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        model.base_model(tokens_1T.to(model.device), past_key_values=Cache(layers=[*layers]))
    finally:
        model.set_attn_implementation(used)
    return [layer.key_scales for layer in layers]
