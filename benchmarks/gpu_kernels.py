"""The CUDA kernels with the signatures of `gear_trt.native`, guarded on their way to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gear_trt import c_api
from gear_trt.spec import CompressionConfig
from gear_trt.torch import device as device_calls
from tests.plugins.checks import GUARD_BYTES
from tests.torch.op import as_array, as_tensor

Array = NDArray[Any]

_PATTERN = 0xA5


class Guarded:
    """A copy of an array on a device, between patterns that kernels must leave alone."""

    def __init__(self, like: Array, device: torch.device) -> None:
        self._host = like
        self._raw = torch.full(
            (like.nbytes + 2 * GUARD_BYTES,), _PATTERN, dtype=torch.uint8, device=device
        )
        values = as_tensor(like).to(device)
        inner = self._raw[GUARD_BYTES : GUARD_BYTES + like.nbytes]
        self.tensor = inner.view(values.dtype).view(values.shape)
        self.tensor.copy_(values)

    def bring_back(self) -> None:
        """Check the patterns, then copy the tensor into the array that it came from.

        Raises:
            AssertionError: Something was written outside the tensor.
        """
        for side in (self._raw[:GUARD_BYTES], self._raw[-GUARD_BYTES:]):
            if not bool((side == _PATTERN).all()):
                raise AssertionError("the kernels wrote outside an array")
        self._host[...] = as_array(self.tensor)


class DeviceKernels:
    """Runs every call on a device and waits for it.

    Args:
        device: A GPU; or the CPU, where the emulated library is loaded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def compress_pages(
        self, keys_PCD: Array, values_PCD: Array, config: CompressionConfig, *, out: Array
    ) -> Array:
        """Compress pages into `out` [pages, page_words].

        Raises:
            AssertionError: Something was written outside `out`.
            ValueError: As `gear_trt.native.compress_page`.
        """
        keys, values = (torch.from_numpy(x).to(self._device) for x in (keys_PCD, values_PCD))
        pages = Guarded(out, self._device)
        device_calls.compress_into(pages.tensor, keys, values, config)
        device_calls.raise_errors(self._device)
        pages.bring_back()
        return out

    def attention(
        self,
        query_BSND: Array,
        key_BSHD: Array,
        value_BSHD: Array,
        *,
        page_pool: Array,
        residual_buffer: Array,
        config: CompressionConfig,
        scale: float,
        softcap: float = 0.0,
        sliding_window: int = 0,
        layer: int = 0,
        out: Array | None = None,
        **indices: Array,
    ) -> Array:
        """As `gear_trt.native.attention`; `indices` are page table, slots and lengths.

        Raises:
            AssertionError: Something was written outside the state and the output.
            ValueError: As `gear_trt.native.attention`.
        """
        out = np.empty(query_BSND.shape, query_BSND.dtype) if out is None else out
        written = {
            name: Guarded(array, self._device)
            for name, array in (
                ("page_pool", page_pool),
                ("residual_buffer", residual_buffer),
                ("output", out),
            )
        }
        read = {"query": query_BSND, "key": key_BSHD, "value": value_BSHD, **indices}
        tensors = {name: as_tensor(array).to(self._device) for name, array in read.items()} | {
            name: guarded.tensor for name, guarded in written.items()
        }
        batch, seq_len, num_heads, head_dim = query_BSND.shape
        shape = c_api.AttentionShape(
            config=config,
            dtype=query_BSND.dtype.name,
            batch=batch,
            seq_len=seq_len,
            num_heads=num_heads,
            num_kv_heads=key_BSHD.shape[2],
            head_dim=head_dim,
            num_pages=len(page_pool),
            num_slots=len(residual_buffer),
            max_pages=indices["page_table"].shape[1],
        )
        call = c_api.attention_call(
            shape,
            {name: tensor.data_ptr() for name, tensor in tensors.items()},
            scale=scale,
            softcap=softcap,
            sliding_window=sliding_window,
            layer=layer,
        )
        device_calls.run_attention(call, self._device)
        device_calls.raise_errors(self._device)
        for guarded in written.values():
            guarded.bring_back()
        return out
