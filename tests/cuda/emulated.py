"""`libgear_emulated.so`, the CUDA library on the CPU, with the functions of `gear_trt.native`.

What the device reports after a call is raised by the call.
"""

import numpy as np

from gear_trt import c_api, cuda
from gear_trt.spec import page_layout


class _Workspace:
    """Memory that calls share: zeros when it is new, then what they leave in it."""

    def __init__(self):
        self._bytes = np.zeros(0, np.uint8)

    def address(self, size):
        if self._bytes.size < size + cuda.WORKSPACE_ALIGNMENT:
            self._bytes = np.zeros(size + cuda.WORKSPACE_ALIGNMENT, np.uint8)
        return self._bytes.ctypes.data + -self._bytes.ctypes.data % cuda.WORKSPACE_ALIGNMENT


_workspace = _Workspace()


def compress_pages(keys_PCD, values_PCD, config, *, out=None):
    """Compress pages [P, C, D] of the buffer's type; return [P, page_words]."""
    head_dim = keys_PCD.shape[-1]
    if out is None:
        out = np.empty((len(keys_PCD), page_layout(config, head_dim).page_words), np.int32)
    size = cuda.compress_workspace_bytes(config, head_dim)
    workspace = _workspace.address(size)
    cuda.run_compress_pages(
        keys_PCD.ctypes.data,
        values_PCD.ctypes.data,
        out.ctypes.data,
        len(keys_PCD),
        config=config,
        head_dim=head_dim,
        workspace=workspace,
        workspace_bytes=size,
        stream=0,
    )
    cuda.raise_errors(workspace, 0)
    return out


def attention(
    query_BSND, key_BSHD, value_BSHD, *, config, out=None, scale, softcap=0.0, sliding_window=0,
    layer=0, log_sum_exp=None, **state
):  # fmt: skip
    """Attend and append, as `gear_trt.native.attention`."""
    query, key, value = (np.ascontiguousarray(x) for x in (query_BSND, key_BSHD, value_BSHD))
    if out is None:
        out = np.empty(query.shape, query.dtype)
    batch, seq_len, num_heads, head_dim = query.shape
    shape = c_api.AttentionShape(
        config=config,
        dtype=query.dtype.name,
        batch=batch,
        seq_len=seq_len,
        num_heads=num_heads,
        num_kv_heads=key.shape[2],
        head_dim=head_dim,
        num_pages=len(state["page_pool"]),
        num_slots=len(state["residual_buffer"]),
        max_pages=state["page_table"].shape[-1],
    )
    arrays = {"query": query, "key": key, "value": value, "output": out, **state}
    for name, (dtype, sizes) in shape.arrays().items():
        array = arrays[name]
        assert (array.dtype, array.shape, array.flags.c_contiguous) == (dtype, sizes, True), name
    call = c_api.attention_call(
        shape,
        {name: array.ctypes.data for name, array in arrays.items()},
        scale=scale,
        softcap=softcap,
        sliding_window=sliding_window,
        layer=layer,
    )
    size = cuda.workspace_bytes(call)
    workspace = _workspace.address(size)
    cuda.run_attention(
        call,
        workspace=workspace,
        workspace_bytes=size,
        stream=0,
        log_sum_exp=None if log_sum_exp is None else log_sum_exp.ctypes.data,
    )
    cuda.raise_errors(workspace, 0)
    return out
