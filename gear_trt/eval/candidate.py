"""What is compared: a kind of cache, its name, and what an element of it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig

from gear_trt.spec import CompressionConfig, ModelConfig, bits_per_element
from gear_trt.torch.cache import ATTENTION_NAME, GearCache

GEAR = "gear"
UNSCALED_SUFFIX = ", keys unscaled"
"""What the name of a cache of ours ends with whose key channels could be scaled and are not."""
EXACT_BITS = 32.0
DENSE_ATTENTION = "sdpa"
CAPPED_ATTENTION = "eager"
"""transformers' attention over keys and values in full; only the second one knows soft caps."""


@dataclass(frozen=True)
class CacheFacts:
    """What rows say of a cache.

    Attributes:
        name: Unique within a run.
        kind: Whose format it is: `gear`, `kivi`, `onnxruntime`, `llama.cpp`, …
        cache: The format, for people.
        bits_per_element: Of K and V together once a token is compressed; scales, mins, corrections
            and padding included.
        buffer: Newest tokens that are uncompressed, at most.
        is_simulated: The cache holds the values that its format would give back, not the format.
        compression: Of caches that our kernels read: the config of every layer.
    """

    name: str
    kind: str
    cache: str
    bits_per_element: float
    buffer: int
    is_simulated: bool = False
    compression: ModelConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate(CacheFacts):
    """A kind of cache for transformers models.

    Attributes:
        make: Returns an empty cache for models of a config.
        attention: Attention implementation that reads it; None where it gives keys and values in
            full.
    """

    make: Callable[[PreTrainedConfig], Cache]
    attention: str | None = None


def exact() -> Candidate:
    """Return the yardstick: transformers' cache in the model's own type."""
    return Candidate(
        name="exact",
        kind="transformers",
        cache="uncompressed",
        bits_per_element=EXACT_BITS,
        buffer=0,
        make=lambda config: DynamicCache(config=config),
    )


def gear(
    name: str,
    compression: ModelConfig,
    config: PreTrainedConfig,
    key_scales: Sequence[torch.Tensor | None] | None = None,
) -> Candidate:
    """Return our cache: pages in memory, read by our kernels.

    Args:
        name: Name of the candidate; it gets a suffix where keys could be scaled and are not.
        compression: How every layer is compressed.
        config: Of the model: its layers and head_dim decide the bits.
        key_scales: As in `GearCache`.

    Raises:
        GearError: `BAD_CONFIG` where a layer is named that the model does not have.
        ValueError: No page can be laid out for the model's head_dim.
    """
    text = config.get_text_config(decoder=True)
    layers = compression.of_layers(text.num_hidden_layers)
    bits = [bits_per_element(layer, head_dim(config)) for layer in layers]
    is_scaled = any(scales_HD is not None for scales_HD in key_scales or ())
    return Candidate(
        name=cache_name(name, layers, is_scaled=is_scaled),
        kind=GEAR,
        cache=describe(layers[0]),
        bits_per_element=sum(bits) / len(bits),
        buffer=layers[0].chunk,
        make=lambda of: GearCache(of, compression, key_scales),
        attention=ATTENTION_NAME,
        compression=compression,
    )


def cache_name(name: str, layers: Sequence[CompressionConfig], *, is_scaled: bool) -> str:
    """Return what rows call a cache of ours: it says where keys could be scaled and are not.

    Args:
        name: What it is called otherwise.
        layers: Config of every layer.
        is_scaled: Whether the channels of its keys are scaled.
    """
    lacks_scales = not is_scaled and any(layer.scales_keys for layer in layers)
    return name + UNSCALED_SUFFIX if lacks_scales else name


def describe(config: CompressionConfig) -> str:
    """Return a line on what all layers of our cache have in common."""
    return f"pages of {config.chunk} tokens, {config.sinks} sinks"


def dense_attention(config: PreTrainedConfig) -> str:
    """Name of transformers' own attention for a model."""
    text = config.get_text_config(decoder=True)
    has_cap = getattr(text, "attn_logit_softcapping", None)
    return CAPPED_ATTENTION if has_cap else DENSE_ATTENTION


def head_dim(config: PreTrainedConfig) -> int:
    """Channels of one head."""
    text = config.get_text_config(decoder=True)
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


class Decoder:
    """A transformers model that decodes over one kind of cache (`gear_trt.eval.steps.Steps`).

    Args:
        model: Shared: its attention implementation is set anew at every step.
        candidate: The kind of cache.
    """

    def __init__(self, model: Any, candidate: Candidate) -> None:  # noqa: ANN401 - untyped
        self._model = model
        self._candidate = candidate
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self._use_attention()
        self.cache = self._candidate.make(self._model.config)

    @torch.inference_mode()
    def step(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Append tokens to every sequence and return their logits [B, S, vocab_size] float32."""
        self._use_attention()
        logits: torch.Tensor = self._model(tokens_BS, past_key_values=self.cache).logits
        return logits.float()

    @property
    def cache_bytes(self) -> int | None:
        """Bytes in use, where the cache is ours."""
        return self.cache.nbytes if isinstance(self.cache, GearCache) else None

    def _use_attention(self) -> None:
        wanted = self._candidate.attention or dense_attention(self._model.config)
        if self._model.config._attn_implementation != wanted:
            self._model.set_attn_implementation(wanted)
