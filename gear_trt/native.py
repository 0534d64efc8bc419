"""The kernel library `libgear.so` on numpy arrays.

The functions mirror `gear_trt.reference`: same arguments, same meaning, compiled kernels.
"""

from __future__ import annotations

import ctypes
import json
from ctypes import POINTER, c_char_p, c_int32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gear_trt import c_api
from gear_trt.reference.half import FloatingArray
from gear_trt.spec.config import CompressionConfig
from gear_trt.spec.layout import page_layout
from gear_trt.spec.ops import ACTIVATION_DTYPES

LIBRARY_VARIABLE = "GEAR_LIBRARY"
"""Environment variable: path of a `libgear.so` to use in place of the installed one."""

IntArray = NDArray[np.int32]

_REBUILD = "build it again with `pip install -e .` (needs a C++17 compiler)"


def library_path() -> Path:
    """Return the path of the kernel library; ONNX Runtime loads its custom op from it.

    Raises:
        GearError: `MISSING_LIBRARY`.
    """
    return c_api.find(LIBRARY_VARIABLE, "libgear.so", what="kernel library", hint=_REBUILD)


@cache
def _library() -> ctypes.CDLL:
    library = c_api.load(library_path(), "gear_layout_hash", hint=_REBUILD)
    library.gear_build_info.restype = c_char_p
    library.gear_instruction_set.restype = c_char_p
    library.gear_use_instruction_set.argtypes = (c_char_p, *c_api.ERROR_TEXT)
    library.gear_compress_page.argtypes = (
        POINTER(c_int32), c_void_p, c_void_p, c_void_p, *c_api.ERROR_TEXT,
    )  # fmt: skip
    library.gear_attention.argtypes = (POINTER(c_api.AttentionCall), *c_api.ERROR_TEXT)
    return library


def build_info() -> dict[str, Any]:
    """Return version, layout hash, compiler, and the instruction sets that this machine can run."""
    return dict(json.loads(_library().gear_build_info()))


def instruction_set() -> str:
    """Return the instruction set in use; empty where `GEAR_CPU` names one that cannot be used."""
    return str(_library().gear_instruction_set().decode())


def use_instruction_set(name: str) -> None:
    """Use another instruction set than `GEAR_CPU` or the machine chose: for tests and benchmarks.

    Raises:
        ValueError: This machine has no such instruction set.
    """
    c_api.checked(_library(), "gear_use_instruction_set", name.encode())


def compress_page(
    keys_CD: FloatingArray,
    values_CD: FloatingArray,
    config: CompressionConfig,
    *,
    out: IntArray | None = None,
) -> IntArray:
    """Compress one page (`gear_trt.reference.compress_page`).

    Args:
        keys_CD: [C, D] rows of the residual buffer (float16; float32 for 32-bit configs).
        values_CD: [C, D], same dtype.
        config: The compression config; C is its `chunk`.
        out: [page_words] int32 array to write to.

    Returns:
        [page_words] int32.

    Raises:
        ValueError: A value is not finite, or the shape is not [chunk, D].
    """
    shape = (config.chunk, keys_CD.shape[-1])
    keys = _input(keys_CD, config.buffer_dtype, shape, "keys_CD")
    values = _input(values_CD, config.buffer_dtype, shape, "values_CD")
    words = page_layout(config, shape[1]).page_words
    page = np.empty(words, np.int32) if out is None else out
    _state(page, "int32", (words,), "out")
    c_api.checked(
        _library(),
        "gear_compress_page",
        c_api.page_config(config, shape[1]),
        keys.ctypes.data,
        values.ctypes.data,
        page.ctypes.data,
    )
    return page


def attention(
    query_BSND: FloatingArray,
    key_BSHD: FloatingArray,
    value_BSHD: FloatingArray,
    *,
    page_pool: IntArray,
    residual_buffer: FloatingArray,
    page_table: IntArray,
    slots: IntArray,
    past_lengths: IntArray,
    new_lengths: IntArray,
    config: CompressionConfig,
    scale: float,
    softcap: float = 0.0,
    sliding_window: int = 0,
    layer: int = 0,
    num_threads: int = 1,
    out: FloatingArray | None = None,
) -> FloatingArray:
    """Attend, then append to the cache in place (`reference.attend`, `ReferenceCache.append`).

    Args:
        query_BSND: [B, S, N, D] float32, float16 or bfloat16, post-RoPE.
        key_BSHD: [B, S, H, D], same dtype, post-RoPE.
        value_BSHD: [B, S, H, D], same dtype.
        page_pool: [num_pages, H, page_words] int32; updated.
        residual_buffer: [slots, H, 2, sinks + C, D] float16 (float32 for 32-bit configs); updated.
        page_table: [B, max_pages] page ids.
        slots: [B] buffer rows.
        past_lengths: [B] tokens before this call.
        new_lengths: [B] valid tokens of this call, 0..S.
        config: The compression config.
        scale: Factor of q·k.
        softcap: c in c·tanh(score / c); 0 turns it off.
        sliding_window: Newest tokens that a query sees, itself included; 0 means all.
        layer: Index that error messages name.
        num_threads: Threads to use; the result does not depend on it.
        out: [B, S, N, D] array of the same dtype to write to.

    Returns:
        [B, S, N, D] of the query's dtype; rows at and beyond new_lengths are 0.

    Raises:
        ValueError: Something is out of range, or a new key or value is not finite; the cache is
            then unchanged.
    """
    batch, seq_len, num_heads, head_dim = query_BSND.shape
    shape = c_api.AttentionShape(
        config=config,
        dtype=name if (name := query_BSND.dtype.name) in ACTIVATION_DTYPES else "float32",
        batch=batch,
        seq_len=seq_len,
        num_heads=num_heads,
        num_kv_heads=key_BSHD.shape[2],
        head_dim=head_dim,
        num_pages=len(page_pool),
        num_slots=len(residual_buffer),
        max_pages=page_table.shape[-1],
    )
    expected = shape.arrays()
    if out is None:
        out = np.empty(query_BSND.shape, shape.dtype)
    state = {"page_pool": page_pool, "residual_buffer": residual_buffer, "output": out}
    for name, array in state.items():
        _state(array, *expected[name], name)
    inputs = {
        "query": _input(query_BSND, *expected["query"], "query_BSND"),
        "key": _input(key_BSHD, *expected["key"], "key_BSHD"),
        "value": _input(value_BSHD, *expected["value"], "value_BSHD"),
        "page_table": _input(page_table, *expected["page_table"], "page_table"),
        "slots": _input(slots, *expected["slots"], "slots"),
        "past_lengths": _input(past_lengths, *expected["past_lengths"], "past_lengths"),
        "new_lengths": _input(new_lengths, *expected["new_lengths"], "new_lengths"),
    }
    call = c_api.attention_call(
        shape,
        {name: array.ctypes.data for name, array in (state | inputs).items()},
        scale=scale,
        softcap=softcap,
        sliding_window=sliding_window,
        layer=layer,
        num_threads=num_threads,
    )
    run_attention(call)
    return out


def run_attention(call: c_api.AttentionCall) -> None:
    """Run a call whose arrays lie in host memory, wherever they come from.

    Raises:
        ValueError: As `attention`.
    """
    c_api.checked(_library(), "gear_attention", ctypes.byref(call))


def _input(array: NDArray[Any], dtype: str, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, must be {shape}")
    return np.ascontiguousarray(array, dtype)


def _state(array: NDArray[Any], dtype: str, shape: tuple[int, ...], name: str) -> None:
    """Check an array that the kernels write to."""
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, must be {dtype} {shape}")
    if not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError(f"{name} must be a contiguous, writeable array")
