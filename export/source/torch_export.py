"""From a transformers decoder to ONNX, with one symbolic node per attention layer.

The attention and mask functions are registered with transformers, so neither masks nor repeated
heads nor caches are ever traced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.passes.sites import SYMBOLIC_OP
from gear_trt.export.quiet import quiet
from gear_trt.export.source.source import Dtype
from gear_trt.export.source.torch_cleanup import clean_up
from gear_trt.spec import DOMAIN, graph
from gear_trt.spec.ops import OPSET_VERSION
from gear_trt.torch.support import check_architecture, check_call, check_mask, refuse

if TYPE_CHECKING:
    import onnx_ir as ir
    from transformers import PreTrainedConfig, PreTrainedModel

ATTENTION_NAME = "gear_symbolic"
ONNX_OPSET = 23
"""The first with RotaryEmbedding and RMSNormalization; torch writes no later one yet."""

_UNTRACEABLE_ROPE = frozenset({"dynamic", "longrope"})
_TRACED_SHAPE = (2, 3)  # B, S


def check_config(config: PreTrainedConfig) -> None:
    """Refuse models whose attention `GearAttention` cannot express, before weights are read.

    Raises:
        GearError: `UNSUPPORTED_MODEL`.
    """
    check_architecture(config)
    if getattr(config, "quantization_config", None) is not None:
        refuse("its weights are quantized in a format of their own")
    text = config.get_text_config()
    for rope_type in _rope_types(getattr(text, "rope_parameters", None) or {}):
        if rope_type in _UNTRACEABLE_ROPE:
            refuse(f"its rotary embedding ({rope_type}) changes with the length of the text")


def _rope_types(parameters: dict[str, Any]) -> list[str]:
    """Of a model, or of each kind of its layers."""
    nested = [item for item in parameters.values() if isinstance(item, dict)]
    return [str(item.get("rope_type", "default")) for item in nested or [parameters]]


def export_dtype(config: PreTrainedConfig, wanted: Dtype | None) -> torch.dtype:
    """Return the type that is wanted, else float16 for float16 models and float32 for others."""
    if wanted is not None:
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    return torch.float16 if config.dtype == torch.float16 else torch.float32


def register_attention() -> str:
    """Make the symbolic attention known to transformers and return its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, _symbolic_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
    return ATTENTION_NAME


def to_onnx(network: PreTrainedModel) -> ir.Model:
    """Export a decoder that was loaded with `register_attention`.

    Returns:
        Inputs `input_ids` and `position_ids` [B, S] int64, output `logits` [B, S, V]; its weights
        share the network's memory where possible.

    Raises:
        GearError: `UNSUPPORTED_MODEL`.
    """
    token_ids = torch.zeros(_TRACED_SHAPE, dtype=torch.int64)
    position_ids = torch.arange(_TRACED_SHAPE[1]).repeat(_TRACED_SHAPE[0], 1)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), quiet("torch.onnx"):
        try:
            program: Any = torch.onnx.export(
                _Decoder(network).eval(),
                (token_ids, position_ids),
                dynamo=True,
                opset_version=ONNX_OPSET,
                input_names=[graph.INPUT_IDS, "position_ids"],
                output_names=[graph.LOGITS],
                dynamic_shapes=(axes, axes),
                optimize=False,
                verbose=False,
            )
        except Exception as error:  # torch.export raises what the model's own code raises
            _explain(error)
    model: ir.Model = program.model
    clean_up(model)
    _check_layers(model, network.config)
    return model


class _Decoder(torch.nn.Module):
    """A causal language model without its cache."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """[B, S] int64 twice to logits [B, S, V]."""
        logits: torch.Tensor = self.network(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).logits
        return logits


def _symbolic_attention(
    module: torch.nn.Module,
    query_BNSD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **others: Any,  # noqa: ANN401 - whatever the model passes on
) -> tuple[torch.Tensor, None]:
    """Stand in for attention, as transformers calls it; returns [B, S, N, D]."""
    del dropout
    batch, num_heads, new_tokens, head_dim = query_BNSD.shape
    check_call(module, query_BNSD, value_BHSD, attention_mask, others)
    (output_BSM,) = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{SYMBOLIC_OP}",
        [_heads_last(tensor) for tensor in (query_BNSD, key_BHSD, value_BHSD)],
        {
            "num_heads": num_heads,
            "num_kv_heads": key_BHSD.shape[1],
            "head_dim": head_dim,
            "scale": float(head_dim**-0.5 if scaling is None else scaling),
            "softcap": float(softcap or 0.0),
            "sliding_window": int(sliding_window or 0),
        },
        dtypes=(query_BNSD.dtype,),
        shapes=((batch, new_tokens, num_heads * head_dim),),
        version=OPSET_VERSION,
    )
    return output_BSM.reshape(batch, new_tokens, num_heads, head_dim), None


def _no_mask(*_: Any, **arguments: Any) -> None:  # noqa: ANN401 - transformers' signature
    """Stand in for a mask; the op is causal by itself and knows its sliding window."""
    check_mask(arguments)


def _heads_last(tensor_BNSD: torch.Tensor) -> torch.Tensor:
    """[B, N, S, D] to [B, S, N·D]."""
    batch, _, new_tokens, _ = tensor_BNSD.shape
    return tensor_BNSD.transpose(1, 2).reshape(batch, new_tokens, -1)


def _check_layers(model: ir.Model, config: PreTrainedConfig) -> None:
    """Refuse models with layers that keep a state which no node stands for."""
    expected = config.get_text_config().num_hidden_layers
    found = sum(node.op_type == SYMBOLIC_OP for node in model.graph)
    if found != expected:
        refuse(f"{found} of its {expected} layers use transformers' attention interface")
    counting = next((node for node in model.graph if node.op_type == "Range"), None)
    if counting is not None:
        refuse(f"it counts positions itself instead of taking position_ids ({counting.name})")


def _explain(error: BaseException) -> NoReturn:
    """Raise the GearError that our own functions raised inside torch's, or one about torch's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GearError):
            raise cause
        cause, root = cause.__cause__, cause
    lines = [line for line in str(root).splitlines() if line.strip()]
    raise GearError(
        ErrorCode.UNSUPPORTED_MODEL,
        f"torch.onnx cannot trace the model: {lines[0] if lines else type(root).__name__}",
        hint="export it to ONNX with a KV cache by other means and pass the .onnx file",
    ) from error
