"""The compressed cache of one attention layer, as transformers sees a layer of a cache."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from gear_trt.errors import ErrorCode, GearError
from gear_trt.reference.attention import decompress_sequence
from gear_trt.reference.cache import ReferenceCache, num_pages
from gear_trt.runtime.footprint import buffer_shape, fp16_bytes_per_token, page_bytes
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import CompressionConfig, page_layout
from gear_trt.torch.op import attention
from gear_trt.torch.padding import NewTokens
from gear_trt.torch.pages import LayerPages
from gear_trt.torch.scaling import check_shape
from gear_trt.torch.support import refuse

_LAYER = "gear_layer"


class GearLayer(CacheLayerMixin):  # type: ignore[no-untyped-call] # transformers is untyped
    """Pages and residual buffers of one layer; memory is taken at the first token.

    `update` keeps nothing: it marks the new keys, so that the attention function, which gets them
    next, finds this layer and lets the kernels attend and append in one call.

    Attributes:
        index: Which layer of the model it is.
        config: How it is compressed.
        sliding_window: Newest tokens that a query sees; 0 means all.
        lengths: Tokens held of each sequence.
        columns: Columns that transformers has passed, padding included.

    Args:
        index: Which layer of the model it is.
        config: How it is compressed.
        sliding_window: Newest tokens that a query sees; 0 means all.
        key_scales: [H, D] scales of key channels, positive; None for all 1. Left alone where they
            would change nothing (`CompressionConfig.scales_keys`).
    """

    is_sliding = False  # transformers shall size masks by all tokens: the kernels know the window

    def __init__(
        self,
        index: int,
        config: CompressionConfig,
        sliding_window: int,
        key_scales: Tensor | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index = index
        self.config = config
        self.sliding_window = sliding_window
        self.columns = 0
        self.lengths: list[int] = []
        self._pages: LayerPages | None = None
        self._buffer = torch.empty(0)
        self._scales_HD = key_scales if config.scales_keys else None

    @staticmethod
    def of(key_states: Tensor) -> GearLayer | None:
        """Return the layer that marked these keys in `update`."""
        return getattr(key_states, _LAYER, None)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take memory for a batch like that of the first keys [B, H, S, D].

        Raises:
            GearError: `UNSUPPORTED_MODEL` for a head_dim without a page, `BAD_REQUEST` for scales
                of other heads or channels.
        """
        del value_states
        batch, kv_heads, _, head_dim = key_states.shape
        if self._scales_HD is not None:
            check_shape(self._scales_HD, (kv_heads, head_dim), self.index)
            self._scales_HD = self._scales_HD.to(key_states.device, torch.float32)
        try:
            words = page_layout(self.config, head_dim).page_words
        except ValueError as error:
            refuse(str(error))
        self._facts = LayerFacts(
            num_heads=kv_heads, num_kv_heads=kv_heads, head_dim=head_dim, config=self.config
        )
        self._pages = LayerPages(batch, (kv_heads, words), key_states.device)
        self._buffer = torch.zeros(
            (batch, *buffer_shape(self._facts)),
            dtype=getattr(torch, self.config.buffer_dtype),
            device=key_states.device,
        )
        self.lengths = [0] * batch
        self.is_initialized = True

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *_: Any,  # noqa: ANN401 - whatever the model passes on
        **__: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Mark the new keys [B, H, S, D] and return them and the values as they are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        setattr(key_states, _LAYER, self)
        return key_states, value_states

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
        """Attend, then append (`gear_trt.torch.attention`).

        Args:
            query_BSND: [B, S, N, D] float32, float16 or bfloat16; tokens of every sequence first.
            key_BSHD: [B, S, H, D], likewise.
            value_BSHD: [B, S, H, D], likewise.
            new: How many tokens each sequence has, now and before.
            scale: Factor of q·k.
            softcap: As in the op.

        Raises:
            GearError: `BAD_REQUEST` where the batch or the mask is not that of the tokens held.
            ValueError: A key or value is not finite; the cache is then unchanged.
        """
        self._check_batch(new)
        pages = self._pages
        if pages is None:
            raise RuntimeError("attend needs an update before it")
        query_BSND, key_BSHD = self._scaled(query_BSND, key_BSHD)
        lengths = [past + count for past, count in zip(self.lengths, new.counts, strict=True)]
        pages.reserve(self._first_pages(), [num_pages(n, self.config) for n in lengths])
        device = query_BSND.device
        output = attention(
            query_BSND.contiguous(),
            key_BSHD.contiguous(),
            value_BSHD.contiguous(),
            page_pool=pages.pool,
            residual_buffer=self._buffer,
            page_table=pages.device_table,
            slots=_int32(tuple(range(self.batch_size)), device),
            past_lengths=_int32(tuple(self.lengths), device),
            new_lengths=_int32(new.counts, device),
            config=self.config,
            scale=scale,
            softcap=softcap,
            sliding_window=self.sliding_window,
            layer=self.index,
        )
        self.lengths = lengths
        self.columns += query_BSND.shape[1]
        return output

    def decompressed(self, sequence: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [H, T, D] float32 of a sequence as they are held; slow.

        Keys are without their scales: they compare with those that `update` was given.

        Raises:
            ValueError: The layer is empty, or pages behind a sliding window are gone.
        """
        if self._pages is None or self.sliding_window:
            raise ValueError("the layer does not hold all tokens of its sequences")
        _, kv_heads, _ = self._pages.pool.shape
        head_dim = self._facts.head_dim
        cache = ReferenceCache(
            self.config, num_pages=0, slots=0, num_kv_heads=kv_heads, head_dim=head_dim
        )
        cache.page_pool = self._pages.pool.cpu().numpy()
        cache.residual_buffer = self._buffer.cpu().numpy()
        pages, length = self._pages.table[sequence], self.lengths[sequence]
        heads = [
            decompress_sequence(cache, pages, sequence, length, head) for head in range(kv_heads)
        ]
        keys_HTD, values_HTD = (
            torch.from_numpy(np.stack(side)) for side in zip(*heads, strict=True)
        )
        if self._scales_HD is not None:
            keys_HTD = keys_HTD / self._scales_HD.cpu()[:, None]
        return keys_HTD, values_HTD

    @property
    def batch_size(self) -> int:
        """Sequences; −1, as transformers has it, before the first token."""
        return len(self.lengths) or -1

    @property
    def nbytes(self) -> int:
        """Bytes in use: pages that hold tokens, and the residual buffers."""
        if self._pages is None:
            return 0
        return self._buffer.nbytes + self._pages.in_use * page_bytes(self._facts)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the layer's tensors."""
        return 0 if self._pages is None else self._pages.pool.nbytes + self._buffer.nbytes

    @property
    def fp16_bytes(self) -> int:
        """Bytes that an FP16 cache takes for the same tokens; none behind the sliding window."""
        if not self.is_initialized:
            return 0
        held = sum(min(n, self.sliding_window or n) for n in self.lengths)
        return fp16_bytes_per_token([self._facts]) * held

    def get_seq_length(self) -> int:
        """Columns that transformers has passed, padding included."""
        return self.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All columns, from the first: a mask says which of them are tokens."""
        return self.columns + query_length, 0

    def get_max_length(self) -> int:
        """−1: the pool grows."""
        return -1

    def reset(self) -> None:
        """Forget all tokens and give the memory back."""
        self.is_initialized = False
        self.columns = 0
        self.lengths = []
        self._pages = None
        self._buffer = torch.empty(0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make sequence i what sequence beam_idx[i] was; beams share the pages of their past."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence; the copies share the pages of their past."""
        self.batch_select_indices(torch.arange(len(self.lengths)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences, in this order."""
        rows = indices.tolist()
        if self._pages is None or rows == list(range(self.batch_size)):
            return
        self._pages.select(rows)
        self._buffer = self._buffer.index_select(0, indices.to(self._buffer.device))
        self.lengths = [self.lengths[row] for row in rows]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens, as far as none of them is compressed.

        Args:
            tokens_to_remove: How many, as a negative number: so transformers wants it.

        Raises:
            GearError: `BAD_REQUEST` where a page would have to be opened again, or where sequences
                have padding and thus no common end.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens, got {tokens_to_remove}")
        count = -tokens_to_remove
        if count == 0 or not self.is_initialized:
            return
        if count >= self.columns:
            self.reset()
            return
        if any(length != self.columns for length in self.lengths):
            self._refuse_crop(count, "its batch has padding")
        length = self.columns - count
        if num_pages(length, self.config) != num_pages(self.columns, self.config):
            self._refuse_crop(count, f"token {length} is in a compressed page already")
        self.lengths = [length] * self.batch_size
        self.columns = length

    def _scaled(self, query_BSND: Tensor, key_BSHD: Tensor) -> tuple[Tensor, Tensor]:
        """Return Q / s and K · s, which have the scores of Q and K."""
        if self._scales_HD is None:
            return query_BSND, key_BSHD
        scales_HD = self._scales_HD.to(key_BSHD.dtype)
        queries_per_key = query_BSND.shape[2] // key_BSHD.shape[2]
        scales_ND = scales_HD.repeat_interleave(queries_per_key, dim=0)
        return query_BSND / scales_ND, key_BSHD * scales_HD

    def _refuse_crop(self, count: int, reason: str) -> None:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"the newest {count} tokens of the cache cannot be removed: {reason}",
            hint="assisted decoding and prompt lookup take tokens back and need a DynamicCache",
        )

    def _first_pages(self) -> list[int]:
        """Pages of each sequence that no query will see again, even after a `crop`."""
        if not self.sliding_window:
            return [0] * self.batch_size
        hidden = self.sliding_window + self.config.chunk
        return [num_pages(length + 1 - hidden, self.config) for length in self.lengths]

    def _check_batch(self, new: NewTokens) -> None:
        if len(new.counts) != self.batch_size:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"the cache holds {self.batch_size} sequences, the call has {len(new.counts)}",
                hint="call reset(), or make a new GearCache",
            )
        if list(new.past) != self.lengths:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"attention_mask shows {list(new.past)} earlier tokens, the cache holds "
                f"{self.lengths}",
                hint="the mask must cover all tokens since the cache was empty, and cannot hide "
                "any of them later",
            )


@lru_cache(maxsize=16)
def _int32(values: tuple[int, ...], device: torch.device) -> Tensor:
    """One tensor for all layers of a step."""
    return torch.tensor(values, dtype=torch.int32, device=device)
