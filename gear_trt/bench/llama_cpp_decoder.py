"""llama.cpp as a peer, through the C interface that llama-cpp-python carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.backend import PREFILL_SLICE

CACHE_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q4_0": llama_cpp.GGML_TYPE_Q4_0}


_IGNORE = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
"""Takes the log that llama.cpp would print: failures are raised."""


class LlamaDecoder:
    """Implements `Decoder`.

    Args:
        weights: What `load_weights` returned.
        cache_type: A key of `CACHE_TYPES`, for K and V.
        has_flash_attention: Use it.
        bytes_per_token: Bytes of one token in the cache.
        capacity: Longest sequence, tokens.
        threads: CPU threads.

    Raises:
        GearError: `BAD_REQUEST` where llama.cpp cannot make such a cache.
    """

    def __init__(
        self,
        weights: Any,  # noqa: ANN401 - a C pointer
        *,
        cache_type: str,
        has_flash_attention: bool,
        bytes_per_token: float,
        capacity: int,
        threads: int,
    ) -> None:
        self._weights = weights
        self._cache_type = cache_type
        self._has_flash_attention = has_flash_attention
        self._bytes_per_token = bytes_per_token
        self._threads = threads
        self._length = 0
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = capacity
        parameters.n_batch = parameters.n_ubatch = PREFILL_SLICE
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if has_flash_attention
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        parameters.type_k = parameters.type_v = CACHE_TYPES[cache_type]
        self._context = llama_cpp.llama_init_from_model(weights, parameters)
        if not self._context:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"llama.cpp cannot make a {cache_type} cache of {capacity} tokens",
                hint="leave --gguf out to go without llama.cpp",
            )
        vocabulary = llama_cpp.llama_model_get_vocab(weights)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    @property
    def cache_bytes(self) -> int:
        """See `Decoder.cache_bytes`."""
        return round(self._length * self._bytes_per_token)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.floating]:
        """See `Decoder.step`."""
        ids = (llama_cpp.llama_token * len(tokens))(*tokens.tolist())
        batch = llama_cpp.llama_batch_get_one(ids, len(tokens))
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        self._length += len(tokens)
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocab_size,)).copy()

    def reset(self) -> None:
        """See `Decoder.reset`."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._length = 0

    def sibling(self, capacity: int) -> LlamaDecoder:
        """See `Decoder.sibling`."""
        return LlamaDecoder(
            self._weights,
            cache_type=self._cache_type,
            has_flash_attention=self._has_flash_attention,
            bytes_per_token=self._bytes_per_token,
            capacity=capacity,
            threads=self._threads,
        )


def load_weights(gguf: Path) -> Any:  # noqa: ANN401 - a C pointer
    """Load a GGUF file.

    Raises:
        GearError: `MISSING_DEPENDENCY` where llama-cpp-python is too old; `DAMAGED_MODEL`.
    """
    if not hasattr(llama_cpp, "LLAMA_FLASH_ATTN_TYPE_ENABLED"):
        raise GearError(
            ErrorCode.MISSING_DEPENDENCY,
            f"llama-cpp-python {llama_cpp.__version__} is too old",
            hint="pip install --upgrade llama-cpp-python",
        )
    llama_cpp.llama_log_set(_IGNORE, None)
    llama_cpp.llama_backend_init()
    weights = llama_cpp.llama_model_load_from_file(
        str(gguf).encode(), llama_cpp.llama_model_default_params()
    )
    if not weights:
        raise GearError(
            ErrorCode.DAMAGED_MODEL,
            f"llama.cpp cannot load {gguf}",
            hint="pass the GGUF file that the engine was exported from",
        )
    return weights
