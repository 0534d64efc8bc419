"""Attention over an FP16 or FP8 cache by others: PyTorch, and what else is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

_FLASHINFER_WORKSPACE_BYTES = 256 * 2**20
_FLASHINFER_PAGE = 64


@dataclass(frozen=True)
class Peer:
    """Another implementation of decoding.

    Attributes:
        name: As rows name it.
        is_fp16: Whether it holds the cache in FP16, and so counts as the baseline.
        prepare: Takes query [B, N, 1, D], keys and values [B, H, T, D] in float16, puts them into
            the memory that it wants, and returns the call to time.
    """

    name: str
    is_fp16: bool
    prepare: Callable[[Tensor, Tensor, Tensor], Callable[[], Tensor]]


def decode_peers() -> list[Peer]:
    """Return those that can be imported; PyTorch always."""
    peers = [Peer("sdpa-flash", True, _sdpa)]
    if importlib.util.find_spec("flash_attn"):
        peers.append(Peer("flash-attn", True, _flash_attn))
    if importlib.util.find_spec("flashinfer"):
        peers.append(Peer("flashinfer-fp16", True, _flashinfer(torch.float16)))
        peers.append(Peer("flashinfer-fp8", False, _flashinfer(torch.float8_e4m3fn)))
    return peers


def sdpa(query: Tensor, keys: Tensor, values: Tensor, *, is_causal: bool) -> Tensor:
    """PyTorch's attention by its flash back end and no other, without a mask."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(
            query, keys, values, is_causal=is_causal, enable_gqa=True
        )


def _sdpa(query: Tensor, keys: Tensor, values: Tensor) -> Callable[[], Tensor]:
    return lambda: sdpa(query, keys, values, is_causal=False)


def _flash_attn(query: Tensor, keys: Tensor, values: Tensor) -> Callable[[], Tensor]:
    from flash_attn import flash_attn_with_kvcache

    query, keys, values = (x.transpose(1, 2).contiguous() for x in (query, keys, values))
    lengths = torch.full((len(query),), keys.shape[1], dtype=torch.int32, device=query.device)
    return lambda: flash_attn_with_kvcache(query, keys, values, cache_seqlens=lengths)


def _flashinfer(dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], Callable[[], Tensor]]:
    def prepare(query: Tensor, keys: Tensor, values: Tensor) -> Callable[[], Tensor]:
        import flashinfer

        batch, heads, _, head_dim = query.shape
        kv_heads, pages = keys.shape[1], keys.shape[2] // _FLASHINFER_PAGE
        paged = torch.stack([_in_pages(keys, pages), _in_pages(values, pages)], dim=1).to(dtype)
        device = query.device
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(_FLASHINFER_WORKSPACE_BYTES, dtype=torch.uint8, device=device), "NHD",
            use_tensor_cores=heads // kv_heads >= 4,
        )  # fmt: skip
        wrapper.plan(
            torch.arange(batch + 1, dtype=torch.int32, device=device) * pages,
            torch.arange(batch * pages, dtype=torch.int32, device=device),
            torch.full((batch,), _FLASHINFER_PAGE, dtype=torch.int32, device=device),
            heads, kv_heads, head_dim, _FLASHINFER_PAGE,
            q_data_type=query.dtype, kv_data_type=dtype,
        )  # fmt: skip
        rows = query[:, :, 0].contiguous()
        return lambda: wrapper.run(rows, paged)

    return prepare


def _in_pages(tensor_BHTD: Tensor, pages: int) -> Tensor:
    """[B, H, T, D] to [B · pages, page, H, D]; tokens beyond whole pages are left out."""
    batch, heads, _, head_dim = tensor_BHTD.shape
    whole = tensor_BHTD[:, :, : pages * _FLASHINFER_PAGE].transpose(1, 2)
    return whole.reshape(batch * pages, _FLASHINFER_PAGE, heads, head_dim)
