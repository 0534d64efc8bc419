"""`torch.ops.gear.attention`: GearAttention on torch tensors, in place, without a copy."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gear_trt import c_api, native
from gear_trt.spec import DOMAIN, GEAR_ATTENTION, CompressionConfig
from gear_trt.spec.layout import CONFIG_VARIABLES
from gear_trt.torch import device
from gear_trt.torch.tensors import ACTIVATIONS, check_tensor

_ARRAYS = tuple(tensor.name for tensor in GEAR_ATTENTION.inputs)
_STATE = tuple(tensor.alias_of for tensor in GEAR_ATTENTION.outputs if tensor.alias_of)


def attention(
    query_BSND: Tensor,
    key_BSHD: Tensor,
    value_BSHD: Tensor,
    *,
    page_pool: Tensor,
    residual_buffer: Tensor,
    page_table: Tensor,
    slots: Tensor,
    past_lengths: Tensor,
    new_lengths: Tensor,
    config: CompressionConfig,
    scale: float,
    softcap: float = 0.0,
    sliding_window: int = 0,
    layer: int = 0,
) -> Tensor:
    """Attend, then append to the cache in place (`gear_trt.native.attention`).

    On a CPU it uses torch's threads (`torch.get_num_threads`). On a GPU it is queued on the current
    stream and does not wait, so that what only the data shows (a length, slot or page id out of
    range, a value that is not finite) is reported by `gear_trt.torch.raise_errors` afterwards. It
    can be captured in a graph once the capturing stream has made a call of the same sizes.

    Args:
        query_BSND: [B, S, N, D] float32, float16 or bfloat16, post-RoPE; all tensors are
            contiguous and on one device.
        key_BSHD: [B, S, H, D], same dtype, post-RoPE.
        value_BSHD: [B, S, H, D], same dtype.
        page_pool: [num_pages, H, page_words] int32; updated.
        residual_buffer: [slots, H, 2, sinks + C, D] float16 (float32 for 32-bit configs); updated.
        page_table: [B, max_pages] int32 page ids.
        slots: [B] int32 buffer rows.
        past_lengths: [B] int32 tokens before this call.
        new_lengths: [B] int32 valid tokens of this call, 0..S.
        config: The compression config.
        scale: Factor of q·k.
        softcap: c in c·tanh(score / c); 0 turns it off.
        sliding_window: Newest tokens that a query sees, itself included; 0 means all.
        layer: Index that error messages name.

    Returns:
        [B, S, N, D] of the query's dtype; rows at and beyond new_lengths are 0.

    Raises:
        RuntimeError: A graph is captured on a stream that has made no such call before.
        ValueError: Something has a wrong shape or type, or the kernels refuse it; the cache is then
            unchanged.
        GearError: `MISSING_LIBRARY` or `LAYOUT_MISMATCH` of the device's kernel library.
    """
    output: Tensor = torch.ops.gear.attention(
        query_BSND,
        key_BSHD,
        value_BSHD,
        page_pool,
        residual_buffer,
        page_table,
        slots,
        past_lengths,
        new_lengths,
        [getattr(config, name) for name in CONFIG_VARIABLES],
        scale,
        softcap,
        sliding_window,
        layer,
    )
    return output


def _schema() -> str:
    """Tensors of the op table in its order, those that the op writes to marked; then attributes."""
    tensors = [
        f"Tensor(a{index}!) {name}" if name in _STATE else f"Tensor {name}"
        for index, name in enumerate(_ARRAYS)
    ]
    attributes = "int[] config, float scale, float softcap, int sliding_window, int layer"
    return f"({', '.join(tensors)}, {attributes}) -> Tensor"


class _Arguments(NamedTuple):
    """What torch passes on, in the order of the schema."""

    query: Tensor
    key: Tensor
    value: Tensor
    page_pool: Tensor
    residual_buffer: Tensor
    page_table: Tensor
    slots: Tensor
    past_lengths: Tensor
    new_lengths: Tensor
    config: list[int]
    scale: float
    softcap: float
    sliding_window: int
    layer: int


def _call(arguments: _Arguments, output: Tensor) -> c_api.AttentionCall:
    """Check the tensors and fill in the call.

    Raises:
        ValueError: A tensor has another shape, type or device than the call needs.
    """
    shape = _shape(arguments)
    tensors = {name: getattr(arguments, name) for name in _ARRAYS} | {"output": output}
    for name, (dtype, dimensions) in shape.arrays().items():
        check_tensor(tensors[name], dtype, dimensions, output.device, name)
    return c_api.attention_call(
        shape,
        {name: tensor.data_ptr() for name, tensor in tensors.items()},
        scale=arguments.scale,
        softcap=arguments.softcap,
        sliding_window=arguments.sliding_window,
        layer=arguments.layer,
        num_threads=torch.get_num_threads(),
    )


def _shape(arguments: _Arguments) -> c_api.AttentionShape:
    for name, axes in (("query", "BSND"), ("key", "BSHD"), ("page_table", "BP")):
        tensor: Tensor = getattr(arguments, name)
        if tensor.ndim != len(axes):
            raise ValueError(f"{name} has {tensor.ndim} axes, must have {len(axes)}")
    batch, seq_len, num_heads, head_dim = arguments.query.shape
    return c_api.AttentionShape(
        config=CompressionConfig.checked(
            dict(zip(CONFIG_VARIABLES, arguments.config, strict=True))
        ),
        dtype=ACTIVATIONS.get(arguments.query.dtype, "float32"),
        batch=batch,
        seq_len=seq_len,
        num_heads=num_heads,
        num_kv_heads=arguments.key.shape[2],
        head_dim=head_dim,
        num_pages=len(arguments.page_pool),
        num_slots=len(arguments.residual_buffer),
        max_pages=arguments.page_table.shape[1],
    )


@lru_cache(maxsize=64)
def _config(values: tuple[int, ...]) -> CompressionConfig:
    return CompressionConfig.checked(dict(zip(CONFIG_VARIABLES, values, strict=True)))


@torch.library.custom_op(
    f"{DOMAIN}::attention", mutates_args=_STATE, device_types="cpu", schema=_schema()
)
def _attention_op(*values: object) -> Tensor:
    arguments = _Arguments(*values)  # type: ignore[arg-type] # as the schema says
    output = torch.empty_like(arguments.query)
    native.run_attention(_call(arguments, output))
    return output


@_attention_op.register_kernel("cuda")
def _on_cuda(*values: object) -> Tensor:
    arguments = _Arguments(*values)  # type: ignore[arg-type] # as the schema says
    with torch.cuda.device(arguments.query.device):
        output = torch.empty_like(arguments.query)
        device.run_attention(_call(arguments, output), output.device)
    return output


@_attention_op.register_fake
def _fake(query: Tensor, *_: object) -> Tensor:
    return torch.empty_like(query)
