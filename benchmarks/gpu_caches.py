"""Caches of whole decoders, allocated for their longest sequences: FP16, and compressed."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu_decoder import DecoderShape
from benchmarks.gpu_history import History, compressed_pages, residual_buffers
from benchmarks.gpu_peers import sdpa
from gear_trt.reference.cache import num_pages
from gear_trt.runtime.footprint import buffer_shape, page_shape
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import CompressionConfig
from gear_trt.torch import attention


class HalfCache:
    """Keys and values in FP16, attended to by PyTorch's flash attention.

    Its lengths are sizes of tensors, so that a captured step is for one length only.

    Args:
        shape: Sizes of the decoder.
        batch: B.
        capacity: Most tokens of a sequence.
        device: Where; `meta` to learn what it takes.
    """

    is_replayable = False

    def __init__(
        self, shape: DecoderShape, batch: int, capacity: int, device: torch.device
    ) -> None:
        size = (2, batch, shape.kv_heads, capacity, shape.head_dim)
        self._sides = [
            torch.zeros(size, dtype=torch.float16, device=device) for _ in range(shape.num_layers)
        ]
        self._length = 0
        self.past_B = torch.zeros(batch, dtype=torch.int32, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(sides.nbytes for sides in self._sides)

    def fill(self, history: History) -> None:
        """Give every sequence and layer the history of one sequence, [1, H, T, D]."""
        tokens = history.keys_BHTD.shape[2]
        for keys, values in self._sides:
            keys[:, :, :tokens] = history.keys_BHTD
            values[:, :, :tokens] = history.values_BHTD
        self.rewind(tokens)

    def rewind(self, tokens: int) -> None:
        """Forget all but the first tokens."""
        self._length = tokens
        self.past_B.fill_(tokens)

    def attend(
        self, layer: int, query_BSND: Tensor, key_BSHD: Tensor, value_BSHD: Tensor
    ) -> Tensor:
        """Write the new tokens behind the old ones and attend to all."""
        keys, values = self._sides[layer]
        keys[:, :, self._length] = key_BSHD[:, 0]
        values[:, :, self._length] = value_BSHD[:, 0]
        seen = slice(self._length + 1)
        query = query_BSND.transpose(1, 2)
        output = sdpa(query, keys[:, :, seen], values[:, :, seen], is_causal=False)
        return output.transpose(1, 2)

    def advance(self) -> None:
        """Count the new tokens."""
        self._length += 1
        self.past_B += 1


class PackedCache:
    """Pages and residual buffers, attended to by `gear_trt.torch.attention`.

    Its lengths lie on the device, so that a captured step serves them all.

    Args:
        config: The compression config.
        shape: Sizes of the decoder.
        batch: B.
        capacity: Most tokens of a sequence.
        device: Where; `meta` to learn what it takes.
    """

    is_replayable = True

    def __init__(
        self,
        config: CompressionConfig,
        shape: DecoderShape,
        batch: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        facts = LayerFacts(
            num_heads=shape.num_heads,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            config=config,
        )
        pages = num_pages(capacity, config)
        layers = range(shape.num_layers)
        self._config = config
        self._scale = shape.head_dim**-0.5
        pool, buffer = (batch * pages, *page_shape(facts)), (batch, *buffer_shape(facts))
        self._pools = [torch.zeros(pool, dtype=torch.int32, device=device) for _ in layers]
        self._buffers = [torch.zeros(buffer, dtype=torch.float16, device=device) for _ in layers]
        ids = torch.arange(batch * pages, dtype=torch.int32, device=device)
        self._table = ids.view(batch, pages)
        self._slots = torch.arange(batch, dtype=torch.int32, device=device)
        self._new_B = torch.ones(batch, dtype=torch.int32, device=device)
        self.past_B = torch.zeros(batch, dtype=torch.int32, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of pages, buffers and page table."""
        return sum(tensor.nbytes for tensor in (*self._pools, *self._buffers, self._table))

    def fill(self, history: History) -> None:
        """Give every sequence and layer the history of one sequence, [1, H, T, D]."""
        pages = compressed_pages(history, self._config)
        rows = residual_buffers(history, self._config)
        for pool, buffer in zip(self._pools, self._buffers, strict=True):
            pool.view(*self._table.shape, *pool.shape[1:])[:, : len(pages)] = pages
            buffer[:] = rows
        self.rewind(history.keys_BHTD.shape[2])

    def rewind(self, tokens: int) -> None:
        """Go on from a length that `fill` gave, over what has been written since."""
        self.past_B.fill_(tokens)

    def attend(
        self, layer: int, query_BSND: Tensor, key_BSHD: Tensor, value_BSHD: Tensor
    ) -> Tensor:
        """Attend, then append and compress what became full."""
        return attention(
            query_BSND.contiguous(),
            key_BSHD.contiguous(),
            value_BSHD.contiguous(),
            page_pool=self._pools[layer],
            residual_buffer=self._buffers[layer],
            page_table=self._table,
            slots=self._slots,
            past_lengths=self.past_B,
            new_lengths=self._new_B,
            config=self._config,
            scale=self._scale,
            layer=layer,
        )

    def advance(self) -> None:
        """Count the new tokens."""
        self.past_B += 1
