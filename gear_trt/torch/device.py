"""Calls of `libgear_cuda.so` on torch tensors: current stream, workspaces, errors afterwards."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from gear_trt import c_api, cuda
from gear_trt.spec import CompressionConfig, page_layout
from gear_trt.torch.tensors import check_tensor

_workspaces: dict[tuple[torch.device, int, int], Tensor] = {}
"""By device, stream and size. None is ever replaced: captured graphs keep their addresses."""


def run_attention(call: c_api.AttentionCall, device: torch.device) -> None:
    """Queue a call on the device's current stream.

    Raises:
        RuntimeError: A graph is captured on a stream that has no workspace of this size yet.
        ValueError: The attributes or the sizes are refused.
    """
    stream = _stream(device)
    workspace = _workspace(device, stream, cuda.workspace_bytes(call))
    cuda.run_attention(
        call,
        workspace=workspace.data_ptr(),
        workspace_bytes=workspace.nbytes,
        stream=stream,
    )


def compress_pages(keys_PCD: Tensor, values_PCD: Tensor, config: CompressionConfig) -> Tensor:
    """Compress pages on their GPU (`gear_trt.reference.compress_page` of each).

    Args:
        keys_PCD: [pages, C, D] contiguous rows of the residual buffer's type.
        values_PCD: [pages, C, D], likewise.
        config: The compression config; C is its `chunk`.

    Returns:
        [pages, page_words] int32.

    Raises:
        ValueError: A tensor has another shape or type, or the config is refused.
    """
    count, _, head_dim = keys_PCD.shape
    words = page_layout(config, head_dim).page_words
    pages_PW = torch.empty((count, words), dtype=torch.int32, device=keys_PCD.device)
    compress_into(pages_PW, keys_PCD, values_PCD, config)
    return pages_PW


def compress_into(
    pages_PW: Tensor, keys_PCD: Tensor, values_PCD: Tensor, config: CompressionConfig
) -> None:
    """Compress into memory that is there: `compress_pages` with a result [pages, page_words]."""
    count, _, head_dim = keys_PCD.shape
    device, stream = keys_PCD.device, _stream(keys_PCD.device)
    rows = (config.buffer_dtype, (count, config.chunk, head_dim))
    check_tensor(keys_PCD, *rows, device, "keys_PCD")
    check_tensor(values_PCD, *rows, device, "values_PCD")
    words = page_layout(config, head_dim).page_words
    check_tensor(pages_PW, "int32", (count, words), device, "pages_PW")
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        workspace = _workspace(device, stream, cuda.compress_workspace_bytes(config, head_dim))
        cuda.run_compress_pages(
            keys_PCD.data_ptr(),
            values_PCD.data_ptr(),
            pages_PW.data_ptr(),
            count,
            config=config,
            head_dim=head_dim,
            workspace=workspace.data_ptr(),
            workspace_bytes=workspace.nbytes,
            stream=stream,
        )


def raise_errors(device: torch.device) -> None:
    """Wait for every stream that was used on the device, and report what its kernels met.

    Raises:
        ValueError: A length, slot, page id or value of an earlier call was wrong; the kernels have
            skipped what it touches.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    for (owner, stream, _), workspace in _workspaces.items():
        if owner == device:
            cuda.raise_errors(workspace.data_ptr(), stream)


def _stream(device: torch.device) -> int:
    """The current stream; 0 for the library that runs the kernels on the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _workspace(device: torch.device, stream: int, size: int) -> Tensor:
    size = max(cuda.WORKSPACE_ALIGNMENT, 1 << max(size - 1, 0).bit_length())
    key = (device, stream, size)
    if key not in _workspaces:
        _refuse_capture(device)
        memory = torch.zeros(size + cuda.WORKSPACE_ALIGNMENT, dtype=torch.uint8, device=device)
        start = -memory.data_ptr() % cuda.WORKSPACE_ALIGNMENT
        _workspaces[key] = memory[start : start + size]
    return _workspaces[key]


def _refuse_capture(device: torch.device) -> None:
    """Refuse to make a workspace while a graph is captured: only its replay would write the zeros.

    Raises:
        RuntimeError: A graph is captured on the current stream.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the first call of its size on a stream cannot be captured: make one on the stream of "
            "torch.cuda.graph(graph, stream=...) before"
        )
