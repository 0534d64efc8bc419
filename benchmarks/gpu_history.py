"""A compressed past, and the same past in FP16, for benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu_shapes import Shape
from gear_trt.reference.cache import num_pages
from gear_trt.spec import CompressionConfig
from gear_trt.torch import attention, compress_pages


@dataclass(frozen=True)
class History:
    """Keys and values of the past: [B, H, T, D] float16."""

    keys_BHTD: Tensor
    values_BHTD: Tensor


@dataclass(frozen=True)
class Step:
    """One new token of every sequence: query [B, 1, N, D], key and value [B, 1, H, D], float16."""

    query_BSND: Tensor
    key_BSHD: Tensor
    value_BSHD: Tensor


def random_history(shape: Shape, tokens: int, device: torch.device) -> History:
    """Normal numbers whose channels differ in scale and mean, as keys of real models do."""
    generator = torch.Generator(device).manual_seed(tokens)
    size = (shape.batch, shape.kv_heads, tokens, shape.head_dim)
    channels = torch.randn(shape.head_dim, generator=generator, device=device)
    sides = []
    for spread in (1.0, 0.3):
        side = torch.randn(size, generator=generator, device=device, dtype=torch.float16)
        side *= torch.exp(0.5 * spread * channels).half()
        side += (spread * channels.flip(0)).half()
        sides.append(side)
    return History(*sides)


def random_step(shape: Shape, device: torch.device) -> Step:
    """Normal numbers."""
    generator = torch.Generator(device).manual_seed(shape.group)
    heads = (shape.num_heads, shape.kv_heads, shape.kv_heads)
    return Step(
        *(
            torch.randn(
                (shape.batch, 1, count, shape.head_dim),
                generator=generator,
                device=device,
                dtype=torch.float16,
            )
            for count in heads
        )
    )


class CompressedHistory:
    """Pages and buffers of a history, several times over so that no call finds them in a cache.

    Args:
        history: What to compress; as many tokens as `shape.past(config)`.
        shape: Its sizes.
        config: The compression config.
        copies: How many times it shall be in memory.
    """

    def __init__(
        self, history: History, shape: Shape, config: CompressionConfig, copies: int
    ) -> None:
        self._shape = shape
        self._config = config
        batch, pages = shape.batch, shape.pages(config)
        device = history.keys_BHTD.device
        self._pool = compressed_pages(history, config).repeat(copies, 1, 1)
        self._buffer = residual_buffers(history, config).repeat(copies, 1, 1, 1, 1)
        self._tables = torch.arange(copies * batch * pages, dtype=torch.int32, device=device)
        self._tables = self._tables.view(copies, batch, pages)
        self._slots = torch.arange(copies * batch, dtype=torch.int32, device=device)
        self._slots = self._slots.view(copies, batch)
        self._past = torch.full((batch,), shape.past(config), dtype=torch.int32, device=device)
        self._new = torch.ones_like(self._past)

    def calls(self, step: Step) -> list[Callable[[], Tensor]]:
        """One call per copy; each writes the new token to the same row whenever it is made."""
        return [
            lambda table=table, slots=slots: attention(  # type: ignore[misc]
                step.query_BSND,
                step.key_BSHD,
                step.value_BSHD,
                page_pool=self._pool,
                residual_buffer=self._buffer,
                page_table=table,
                slots=slots,
                past_lengths=self._past,
                new_lengths=self._new,
                config=self._config,
                scale=self._shape.head_dim**-0.5,
            )
            for table, slots in zip(self._tables, self._slots, strict=True)
        ]


def exact_attention(history: History, step: Step) -> Tensor:
    """Attention of the step over the history and itself in FP32: [B, 1, N, D]."""
    rows = []
    for b in range(len(step.query_BSND)):
        keys, values = (
            torch.cat([past[b], new[b].transpose(0, 1)], dim=1).float()
            for past, new in (
                (history.keys_BHTD, step.key_BSHD),
                (history.values_BHTD, step.value_BSHD),
            )
        )
        heads, _, head_dim = keys.shape
        query_HGD = step.query_BSND[b, 0].view(heads, -1, head_dim).float()
        scores_HGT = query_HGD @ keys.transpose(1, 2) * head_dim**-0.5
        rows.append((scores_HGT.softmax(dim=-1) @ values).view(1, -1, head_dim))
    return torch.stack(rows)


def nmse(actual: Tensor, expected: Tensor) -> float:
    """Squared error relative to the energy of what is expected."""
    error = actual.double() - expected.double()
    return float(error.square().sum() / expected.double().square().sum())


def compressed_pages(history: History, config: CompressionConfig) -> Tensor:
    """Compress every full page: [B · pages, H, page_words] int32."""
    batch, heads, tokens, head_dim = history.keys_BHTD.shape
    pages = num_pages(tokens, config)
    paged = slice(config.sinks, config.sinks + pages * config.chunk)
    keys, values = (
        side[:, :, paged].reshape(batch * heads * pages, config.chunk, head_dim).contiguous()
        for side in (history.keys_BHTD, history.values_BHTD)
    )
    words = compress_pages(keys, values, config)
    by_sequence = words.view(batch, heads, pages, -1).transpose(1, 2)
    return by_sequence.reshape(batch * pages, heads, -1)


def residual_buffers(history: History, config: CompressionConfig) -> Tensor:
    """Buffers [B, H, 2, sinks + C, D] float16: the sinks, and the tokens behind the last page."""
    sides = torch.stack([history.keys_BHTD, history.values_BHTD], dim=2)
    batch, heads, _, tokens, head_dim = sides.shape
    sinks = config.sinks
    waiting = tokens - sinks - num_pages(tokens, config) * config.chunk
    buffer = sides.new_zeros((batch, heads, 2, sinks + config.chunk, head_dim))
    buffer[:, :, :, :sinks] = sides[:, :, :, :sinks]
    buffer[:, :, :, sinks : sinks + waiting] = sides[:, :, :, tokens - waiting :]
    return buffer
