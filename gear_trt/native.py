"""The kernel library `libgear.so` on numpy arrays.

The functions mirror `gear_trt.reference`: same arguments, same meaning, compiled kernels.
"""

from __future__ import annotations

import ctypes
import json
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_size_t, c_void_p
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec.config import CompressionConfig
from gear_trt.spec.layout import CONFIG_VARIABLES, layout_hash, page_layout

LIBRARY_VARIABLE = "GEAR_LIBRARY"
"""Environment variable: path of a `libgear.so` to use in place of the installed one."""

IntArray = NDArray[np.int32]
FloatingArray = NDArray[np.float32] | NDArray[np.float16]

_ERROR_BYTES = 512
_REBUILD = "build it again with `pip install -e .` (needs a C++17 compiler)"


class _Call(ctypes.Structure):
    """`GearAttentionCall` of plugins/include/gear/gear.h."""

    _fields_ = (
        ("page_config", POINTER(c_int32)),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("layer", c_int32),
        ("sliding_window", c_int32),
        ("scale", c_float),
        ("softcap", c_float),
        ("is_float16", c_int32),
        ("batch", c_int32),
        ("seq_len", c_int32),
        ("max_pages", c_int32),
        ("num_pages", c_int32),
        ("num_slots", c_int32),
        ("num_threads", c_int32),
        ("query", c_void_p),
        ("key", c_void_p),
        ("value", c_void_p),
        ("page_pool", c_void_p),
        ("residual_buffer", c_void_p),
        ("page_table", c_void_p),
        ("slots", c_void_p),
        ("past_lengths", c_void_p),
        ("new_lengths", c_void_p),
        ("output", c_void_p),
    )


def library_path() -> Path:
    """Return the path of the kernel library; ONNX Runtime loads its custom op from it.

    Raises:
        GearError: `MISSING_LIBRARY`.
    """
    override = os.environ.get(LIBRARY_VARIABLE)
    path = Path(override) if override else Path(str(files("gear_trt") / "_lib" / "libgear.so"))
    if not path.is_file():
        raise GearError(
            ErrorCode.MISSING_LIBRARY,
            f"no kernel library at {path}",
            hint=f"{LIBRARY_VARIABLE} names it" if override else _REBUILD,
        )
    return path


@cache
def _library() -> ctypes.CDLL:
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        library.gear_layout_hash.restype = c_char_p
        built_for = library.gear_layout_hash().decode()
    except (OSError, AttributeError) as error:
        raise GearError(
            ErrorCode.MISSING_LIBRARY, f"cannot load {path}: {error}", hint=_REBUILD
        ) from None
    if built_for != layout_hash():
        raise GearError(
            ErrorCode.LAYOUT_MISMATCH,
            f"{path} was built for page layout {built_for}, this package has {layout_hash()}",
            hint=_REBUILD,
        )
    error_text = (c_char_p, c_size_t)
    library.gear_build_info.restype = c_char_p
    library.gear_instruction_set.restype = c_char_p
    library.gear_use_instruction_set.argtypes = (c_char_p, *error_text)
    library.gear_compress_page.argtypes = (
        POINTER(c_int32), c_void_p, c_void_p, c_void_p, *error_text,
    )  # fmt: skip
    library.gear_attention.argtypes = (POINTER(_Call), *error_text)
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
    _checked("gear_use_instruction_set", name.encode())


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
    _checked(
        "gear_compress_page",
        _config_members(config, shape[1]),
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
        query_BSND: [B, S, N, D] float32 or float16, post-RoPE.
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
    kv_heads = key_BSHD.shape[2]
    dtype = "float16" if query_BSND.dtype == np.float16 else "float32"
    kv_shape = (batch, seq_len, kv_heads, head_dim)
    page_words = page_layout(config, head_dim).page_words
    buffer_shape = (len(residual_buffer), kv_heads, 2, config.sinks + config.chunk, head_dim)
    if out is None:
        out = np.empty(query_BSND.shape, dtype)
    _state(page_pool, "int32", (len(page_pool), kv_heads, page_words), "page_pool")
    _state(residual_buffer, config.buffer_dtype, buffer_shape, "residual_buffer")
    _state(out, dtype, query_BSND.shape, "out")
    inputs = {
        "query": _input(query_BSND, dtype, query_BSND.shape, "query_BSND"),
        "key": _input(key_BSHD, dtype, kv_shape, "key_BSHD"),
        "value": _input(value_BSHD, dtype, kv_shape, "value_BSHD"),
        "page_table": _input(page_table, "int32", (batch, page_table.shape[-1]), "page_table"),
        "slots": _input(slots, "int32", (batch,), "slots"),
        "past_lengths": _input(past_lengths, "int32", (batch,), "past_lengths"),
        "new_lengths": _input(new_lengths, "int32", (batch,), "new_lengths"),
        "page_pool": page_pool,
        "residual_buffer": residual_buffer,
        "output": out,
    }
    call = _Call(
        page_config=_config_members(config, head_dim),
        num_heads=num_heads,
        num_kv_heads=kv_heads,
        layer=layer,
        sliding_window=sliding_window,
        scale=scale,
        softcap=softcap,
        is_float16=dtype == "float16",
        batch=batch,
        seq_len=seq_len,
        max_pages=page_table.shape[-1],
        num_pages=len(page_pool),
        num_slots=len(residual_buffer),
        num_threads=num_threads,
        **{name: array.ctypes.data for name, array in inputs.items()},
    )
    _checked("gear_attention", ctypes.byref(call))
    return out


def _config_members(config: CompressionConfig, head_dim: int) -> ctypes.Array[c_int32]:
    """`PageConfig` of the generated header: the config's fields, then head_dim."""
    members = [getattr(config, name) for name in CONFIG_VARIABLES] + [head_dim]
    return (c_int32 * len(members))(*members)


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


def _checked(function: str, *arguments: object) -> None:
    """Call a function of the library and raise what it reports."""
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    status: c_int = getattr(_library(), function)(*arguments, error, len(error))
    if status:
        raise ValueError(error.value.decode(errors="replace"))
