"""transformers with a compressed cache: `attn_implementation="gear"` and `GearCache`.

Importing this module registers both the attention and its mask function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import AttentionMaskInterface

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import DEFAULT_PRESET, DOMAIN, CompressionConfig, ModelConfig
from gear_trt.torch.layer import GearLayer
from gear_trt.torch.padding import NewTokens, Padding
from gear_trt.torch.scaling import check_values
from gear_trt.torch.support import check_architecture, check_call, check_mask, refuse
from gear_trt.torch.tensors import ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig

ATTENTION_NAME = DOMAIN
"""Name of the attention implementation in transformers."""


class GearCache(Cache):
    """A cache for `generate` and `forward` that holds compressed pages, never all keys and values.

    Works with batches of unequal length (a 2-D attention mask, padding on any side), beam search
    (beams share pages), sliding windows and soft caps. On CPUs and GPUs alike, in float32, float16
    and bfloat16.

    Args:
        config: Config of a model that was loaded with `attn_implementation="gear"`.
        compression: A preset's name, a config, or the configs of all layers.
        key_scales: Scales of key channels of each layer, [H, D] or None, as `measure_key_scales`
            returns them; with them small codes of keys lose less, for no bytes. None: all 1.

    Raises:
        GearError: `UNSUPPORTED_MODEL` where its attention is not plain causal attention,
            `BAD_REQUEST` where it has another attention implementation or `key_scales` are not
            those of its layers, `UNKNOWN_PRESET`, or `BAD_CONFIG` for layers that the model does
            not have.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        compression: ModelConfig | CompressionConfig | str = DEFAULT_PRESET,
        key_scales: Sequence[Tensor | None] | None = None,
    ) -> None:
        text = config.get_text_config(decoder=True)
        check_architecture(config)
        if text._attn_implementation != ATTENTION_NAME:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"the model computes attention by '{text._attn_implementation}', which cannot read "
                "compressed pages",
                hint=f"load it with attn_implementation='{ATTENTION_NAME}', or call "
                f"model.set_attn_implementation('{ATTENTION_NAME}')",
            )
        windows = layer_windows(config)
        configs = model_config(compression).of_layers(len(windows))
        if key_scales is None:
            key_scales = [None] * len(windows)
        check_values(key_scales, len(windows))
        self._layers = [
            GearLayer(index, *settings)
            for index, settings in enumerate(zip(configs, windows, key_scales, strict=True))
        ]
        super().__init__(layers=[*self._layers])

    @property
    def lengths(self) -> list[int]:
        """Tokens held of each sequence, padding not counted."""
        return list(self._layers[0].lengths)

    @property
    def nbytes(self) -> int:
        """Bytes in use: pages that hold tokens, and all residual buffers."""
        return sum(layer.nbytes for layer in self._layers)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all tensors: pools have room for a few more pages."""
        return sum(layer.allocated_bytes for layer in self._layers)

    @property
    def fp16_bytes(self) -> int:
        """Bytes that an FP16 cache takes for the same tokens."""
        return sum(layer.fp16_bytes for layer in self._layers)

    @property
    def compression_ratio(self) -> float:
        """How many times smaller than an FP16 cache of the same tokens; 0 when empty."""
        return self.fp16_bytes / self.nbytes if self.nbytes else 0.0


def model_config(compression: ModelConfig | CompressionConfig | str) -> ModelConfig:
    """Return the configs of all layers that a preset's name or one config stands for.

    Raises:
        GearError: `UNKNOWN_PRESET`.
    """
    if isinstance(compression, str):
        compression = CompressionConfig.preset(compression)
    if isinstance(compression, CompressionConfig):
        compression = ModelConfig(compression)
    return compression


def layer_windows(config: PreTrainedConfig) -> list[int]:
    """Return the sliding window of each layer of a model, 0 where it sees all tokens.

    Raises:
        GearError: `UNSUPPORTED_MODEL` for layers that keep something else than keys and values.
    """
    text = config.get_text_config(decoder=True)
    return [_window(layer) for layer in DynamicCache(config=text).layers]


def _window(layer: object) -> int:
    if type(layer) is DynamicSlidingWindowLayer:
        return int(layer.sliding_window)
    if type(layer) is not DynamicLayer:
        refuse(f"it has layers that keep a {type(layer).__name__}")
    return 0


def _attention(
    module: torch.nn.Module,
    query_BNSD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    attention_mask: Padding | Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **others: Any,  # noqa: ANN401 - whatever the model passes on
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; returns [B, S, N, D] and no weights."""
    check_call(module, query_BNSD, value_BHSD, attention_mask, others)
    layer = _layer(key_BHSD)
    if (sliding_window or 0) != layer.sliding_window:
        refuse(
            f"layer {layer.index} attends in a window of {sliding_window} tokens, its config says "
            f"{layer.sliding_window or None}"
        )
    if dropout:
        refuse("it drops attention weights at random; call model.eval()")
    new = _new_tokens(layer, attention_mask, query_BNSD)
    dtype = query_BNSD.dtype if query_BNSD.dtype in ACTIVATIONS else torch.float32
    query_BSND, key_BSHD, value_BSHD = (
        new.pack(tensor.transpose(1, 2)).to(dtype) for tensor in (query_BNSD, key_BHSD, value_BHSD)
    )
    output_BSND = layer.attend(
        query_BSND,
        key_BSHD,
        value_BSHD,
        new,
        scale=query_BNSD.shape[3] ** -0.5 if scaling is None else float(scaling),
        softcap=softcap or 0.0,
    )
    return new.unpack(output_BSND).to(query_BNSD.dtype), None


def _layer(key_BHSD: Tensor) -> GearLayer:
    layer = GearLayer.of(key_BHSD)
    if layer is None:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            "attention 'gear' was called with keys that do not come from a GearCache",
            hint="pass past_key_values=GearCache(model.config) to generate or forward",
        )
    return layer


def _new_tokens(
    layer: GearLayer, attention_mask: Padding | Tensor | None, query_BNSD: Tensor
) -> NewTokens:
    batch, _, seq_len, _ = query_BNSD.shape
    if isinstance(attention_mask, Padding):
        return attention_mask.split(seq_len)
    return NewTokens(past=tuple(layer.lengths), counts=(seq_len,) * batch, order=None)


def _mask(*_: Any, **arguments: Any) -> Padding | None:  # noqa: ANN401 - transformers' signature
    """Make no mask: the op is causal by itself; only padding is passed on."""
    check_mask(arguments)
    mask_BT: Tensor | None = arguments.get("attention_mask")
    return None if mask_BT is None else Padding(mask_BT)


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)
