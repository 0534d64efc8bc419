"""The kernel library `libgear_cuda.so` on arrays in device memory, given as addresses.

Nothing here waits for the device but `raise_errors`. `gear_trt.torch` calls it for tensors.
"""

from __future__ import annotations

import ctypes
import json
from ctypes import POINTER, c_char_p, c_int32, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from gear_trt import c_api
from gear_trt.spec.config import CompressionConfig

LIBRARY_VARIABLE = "GEAR_CUDA_LIBRARY"
"""Environment variable: path of a `libgear_cuda.so` to use in place of the installed one."""

WORKSPACE_ALIGNMENT = 256
"""Bytes to which the address of a workspace is aligned."""

_REBUILD = "build it with nvcc: `CMAKE_ARGS=-DGEAR_CUDA=ON pip install -e .`"


def library_path() -> Path:
    """Return the path of the kernel library; ONNX Runtime's CUDA provider loads its op from it.

    Raises:
        GearError: `MISSING_LIBRARY`.
    """
    return c_api.find(
        LIBRARY_VARIABLE, "libgear_cuda.so", what="CUDA kernel library", hint=_REBUILD
    )


@cache
def _library() -> ctypes.CDLL:
    library = c_api.load(library_path(), "gear_cuda_layout_hash", hint=_REBUILD)
    library.gear_cuda_build_info.restype = c_char_p
    library.gear_cuda_workspace_bytes.argtypes = (POINTER(c_api.AttentionCall),)
    library.gear_cuda_workspace_bytes.restype = c_size_t
    library.gear_cuda_attention.argtypes = (
        POINTER(c_api.AttentionCall), c_void_p, c_size_t, c_void_p, c_void_p, *c_api.ERROR_TEXT,
    )  # fmt: skip
    library.gear_cuda_compress_workspace_bytes.argtypes = (POINTER(c_int32),)
    library.gear_cuda_compress_workspace_bytes.restype = c_size_t
    library.gear_cuda_compress_pages.argtypes = (
        POINTER(c_int32), c_void_p, c_void_p, c_int32, c_void_p, c_void_p, c_size_t, c_void_p,
        *c_api.ERROR_TEXT,
    )  # fmt: skip
    library.gear_cuda_status.argtypes = (c_void_p, c_void_p, *c_api.ERROR_TEXT)
    library.gear_cuda_onnxruntime_status.argtypes = (c_void_p, *c_api.ERROR_TEXT)
    return library


def build_info() -> dict[str, Any]:
    """Return version, layout hash, compiler and architectures."""
    return dict(json.loads(_library().gear_cuda_build_info()))


def workspace_bytes(call: c_api.AttentionCall) -> int:
    """Return the bytes of workspace that a call needs; 0 where it will be refused."""
    return int(_library().gear_cuda_workspace_bytes(ctypes.byref(call)))


def run_attention(
    call: c_api.AttentionCall,
    *,
    workspace: int,
    workspace_bytes: int,
    stream: int,
    log_sum_exp: int | None = None,
) -> None:
    """Queue a call whose arrays lie in device memory.

    Args:
        call: The call; its arrays begin on 16 bytes.
        workspace: Address of device memory, aligned to `WORKSPACE_ALIGNMENT`, that was zeros before
            its first use and that calls on other streams do not use.
        workspace_bytes: Its size.
        stream: A `cudaStream_t`.
        log_sum_exp: Address of float32 [B, S, N] to write the logarithm of every query row's sum
            of e^score to; −infinity at and beyond new_lengths.

    Raises:
        ValueError: The attributes or the sizes are refused. What only the device sees (lengths,
            slots, page ids, values that are not finite) is reported by `raise_errors`.
    """
    c_api.checked(
        _library(),
        "gear_cuda_attention",
        ctypes.byref(call),
        workspace,
        workspace_bytes,
        log_sum_exp,
        stream,
    )


def compress_workspace_bytes(config: CompressionConfig, head_dim: int) -> int:
    """Return the bytes of workspace that `run_compress_pages` needs."""
    members = c_api.page_config(config, head_dim)
    return int(_library().gear_cuda_compress_workspace_bytes(members))


def run_compress_pages(
    keys: int,
    values: int,
    pages: int,
    count: int,
    *,
    config: CompressionConfig,
    head_dim: int,
    workspace: int,
    workspace_bytes: int,
    stream: int,
) -> None:
    """Queue the compression of `count` pages.

    Args:
        keys: Address of [count, C, D] rows of the buffer's type, aligned to 16 bytes.
        values: Likewise.
        pages: Address of [count, page_words] int32, likewise.
        count: Pages.
        config: The compression config; C is its `chunk`.
        head_dim: D.
        workspace: As in `run_attention`.
        workspace_bytes: Its size.
        stream: A `cudaStream_t`.

    Raises:
        ValueError: The config or the sizes are refused.
    """
    c_api.checked(
        _library(),
        "gear_cuda_compress_pages",
        c_api.page_config(config, head_dim),
        keys,
        values,
        count,
        pages,
        workspace,
        workspace_bytes,
        stream,
    )


def raise_errors(workspace: int, stream: int) -> None:
    """Wait for the stream and report what was wrong with the data of calls since the last time.

    Raises:
        ValueError: The first thing that a kernel met and skipped.
    """
    c_api.checked(_library(), "gear_cuda_status", workspace, stream)


def raise_onnxruntime_errors(stream: int) -> None:
    """Likewise for the calls that ONNX Runtime has made on a stream, with its own workspaces.

    Raises:
        ValueError: As `raise_errors`.
    """
    c_api.checked(_library(), "gear_cuda_onnxruntime_status", stream)
