"""What of transformers' attention GearAttention can express, and why not where it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import torch

from gear_trt.errors import ErrorCode, GearError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
_KNOWN_TENSORS = frozenset({"cache_position", "position_ids", "position_embeddings"})
_TENSOR_MEANINGS = {"s_aux": "attention sinks (s_aux)", "position_bias": "a position bias"}


def check_architecture(config: PreTrainedConfig) -> None:
    """Refuse models whose config says that their attention is another.

    Raises:
        GearError: `UNSUPPORTED_MODEL`.
    """
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        refuse("it has an encoder and cross-attention")
    if getattr(config, "alibi", False):
        refuse("it adds an ALiBi bias to the scores")
    text = config.get_text_config()
    unknown = set(getattr(text, "layer_types", None) or ()) - _KNOWN_LAYERS
    if unknown:
        refuse(f"it has layers of type {', '.join(sorted(unknown))}")


def check_mask(arguments: Mapping[str, object]) -> None:
    """Refuse what transformers asks of a mask function beyond causality and padding.

    Raises:
        GearError: `UNSUPPORTED_MODEL`.
    """
    if "allow_is_bidirectional_skip" in arguments:
        refuse("its tokens see those that follow them (bidirectional attention)")
    if arguments.get("use_vmap"):
        refuse("it changes the causal mask in a way of its own")


def check_call(
    module: torch.nn.Module,
    query_BNSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    attention_mask: object,
    others: Mapping[str, object],
) -> None:
    """Refuse a call of an attention function that is not plain causal attention.

    Args:
        module: The attention module.
        query_BNSD: [B, N, S, D].
        value_BHSD: [B, H, S, D].
        attention_mask: A tensor where the model made a mask by itself.
        others: Keywords that the attention function does not know.

    Raises:
        GearError: `UNSUPPORTED_MODEL`.
    """
    if isinstance(attention_mask, torch.Tensor):
        refuse("it makes an attention mask of its own (ALiBi, relative positions)")
    if not getattr(module, "is_causal", True):
        refuse("its attention is not causal")
    if value_BHSD.shape[3] != query_BNSD.shape[3]:
        keys, values = query_BNSD.shape[3], value_BHSD.shape[3]
        refuse(f"its keys have {keys} channels and its values {values}")
    for name, value in others.items():
        if isinstance(value, torch.Tensor) and name not in _KNOWN_TENSORS:
            refuse(f"its attention takes {_TENSOR_MEANINGS.get(name, f'a tensor {name}')}")


def refuse(reason: str) -> NoReturn:
    """Raise the `UNSUPPORTED_MODEL` that every refusal of a model is."""
    raise GearError(
        ErrorCode.UNSUPPORTED_MODEL,
        f"the model cannot be routed: {reason}",
        hint="GearAttention computes plain causal attention; see docs/ops.md for what it takes",
    )
