"""The C interface of the kernel libraries: loading them, the call struct, what they report.

`libgear.so` and `libgear_cuda.so` take the same struct; where its arrays live is the caller's
business, so that numpy arrays and torch tensors come here as addresses.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_float, c_int32, c_size_t, c_void_p
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec.config import CompressionConfig
from gear_trt.spec.layout import CONFIG_VARIABLES, layout_hash, page_layout
from gear_trt.spec.ops import ACTIVATION_DTYPES

ERROR_TEXT = (c_char_p, c_size_t)
"""Types of the last two arguments of every function that can fail."""

_ERROR_BYTES = 512


class AttentionCall(ctypes.Structure):
    """`GearAttentionCall` of plugins/include/gear/gear.h."""

    _fields_ = (
        ("page_config", POINTER(c_int32)),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("layer", c_int32),
        ("sliding_window", c_int32),
        ("scale", c_float),
        ("softcap", c_float),
        ("data_type", c_int32),
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


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one call, and what follows from them for each of its arrays.

    Attributes:
        config: The compression config.
        dtype: Element type of query, key, value and output, one of `ACTIVATION_DTYPES`.
        batch: B.
        seq_len: S.
        num_heads: N.
        num_kv_heads: H.
        head_dim: D.
        num_pages: Pages of the pool.
        num_slots: Rows of the residual buffer.
        max_pages: Columns of the page table.
    """

    config: CompressionConfig
    dtype: str
    batch: int
    seq_len: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_pages: int
    num_slots: int
    max_pages: int

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Element type and shape of every array of the call, by its name in the op table."""
        rows = self.config.sinks + self.config.chunk
        words = page_layout(self.config, self.head_dim).page_words
        query = (self.batch, self.seq_len, self.num_heads, self.head_dim)
        key = (self.batch, self.seq_len, self.num_kv_heads, self.head_dim)
        buffer = (self.num_slots, self.num_kv_heads, 2, rows, self.head_dim)
        return {
            "query": (self.dtype, query),
            "key": (self.dtype, key),
            "value": (self.dtype, key),
            "page_pool": ("int32", (self.num_pages, self.num_kv_heads, words)),
            "residual_buffer": (self.config.buffer_dtype, buffer),
            "page_table": ("int32", (self.batch, self.max_pages)),
            "slots": ("int32", (self.batch,)),
            "past_lengths": ("int32", (self.batch,)),
            "new_lengths": ("int32", (self.batch,)),
            "output": (self.dtype, query),
        }


def attention_call(
    shape: AttentionShape,
    addresses: Mapping[str, int],
    *,
    scale: float,
    softcap: float = 0.0,
    sliding_window: int = 0,
    layer: int = 0,
    num_threads: int = 1,
) -> AttentionCall:
    """Fill in the struct.

    Args:
        shape: Sizes; the arrays must have what `shape.arrays()` says, dense and row-major.
        addresses: Address of every array that `shape.arrays()` names, and of nothing else; the
            caller keeps them alive.
        scale: Factor of q·k.
        softcap: c in c·tanh(score / c); 0 turns it off.
        sliding_window: Newest tokens that a query sees, itself included; 0 means all.
        layer: Index that error messages name.
        num_threads: Threads that a CPU library may use.
    """
    return AttentionCall(
        page_config=page_config(shape.config, shape.head_dim),
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        layer=layer,
        sliding_window=sliding_window,
        scale=scale,
        softcap=softcap,
        data_type=ACTIVATION_DTYPES.index(shape.dtype),
        batch=shape.batch,
        seq_len=shape.seq_len,
        max_pages=shape.max_pages,
        num_pages=shape.num_pages,
        num_slots=shape.num_slots,
        num_threads=num_threads,
        **addresses,
    )


def page_config(config: CompressionConfig, head_dim: int) -> ctypes.Array[c_int32]:
    """`PageConfig` of the generated header: the config's fields, then head_dim."""
    members = [getattr(config, name) for name in CONFIG_VARIABLES] + [head_dim]
    return (c_int32 * len(members))(*members)


def find(variable: str, name: str, *, what: str, hint: str) -> Path:
    """Return the path of an installed library, or of what an environment variable names.

    Args:
        variable: Environment variable that overrides the installed library.
        name: File name of the installed one.
        what: What it is called in messages.
        hint: How to build it.

    Raises:
        GearError: `MISSING_LIBRARY`.
    """
    override = os.environ.get(variable)
    path = Path(override) if override else Path(str(files("gear_trt") / "_lib" / name))
    if not path.is_file():
        raise GearError(
            ErrorCode.MISSING_LIBRARY,
            f"no {what} at {path}",
            hint=f"{variable} names it" if override else hint,
        )
    return path


def load(path: Path, hash_function: str, *, hint: str) -> ctypes.CDLL:
    """Load a kernel library that was built for this package's page layout.

    Args:
        path: The library.
        hash_function: The function of the library that returns its layout hash.
        hint: How to build it anew.

    Raises:
        GearError: `MISSING_LIBRARY` where it cannot be loaded, `LAYOUT_MISMATCH`.
    """
    try:
        library = ctypes.CDLL(str(path))
        function = getattr(library, hash_function)
    except (OSError, AttributeError) as error:
        raise GearError(
            ErrorCode.MISSING_LIBRARY, f"cannot load {path}: {error}", hint=hint
        ) from None
    function.restype = c_char_p
    built_for = function().decode()
    if built_for != layout_hash():
        raise GearError(
            ErrorCode.LAYOUT_MISMATCH,
            f"{path} was built for page layout {built_for}, this package has {layout_hash()}",
            hint=hint,
        )
    return library


def checked(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Call a function of a library.

    Raises:
        ValueError: With the words of the library, where it refuses.
    """
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    if getattr(library, function)(*arguments, error, len(error)):
        raise ValueError(error.value.decode(errors="replace"))
