"""The CUDA library compiled for the CPU (plugins/cuda/emulator), on numpy arrays.

The functions mirror `gear_trt.native`; what only the device sees is raised as well.
"""

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_int32, c_size_t, c_void_p

import numpy as np

from gear_trt import c_api
from gear_trt.spec import page_layout


class Library:
    """`libgear_emulated.so`, and a workspace that grows."""

    def __init__(self, path):
        self.c = c_api.load(path, "gear_cuda_layout_hash", hint="")
        self.c.gear_cuda_build_info.restype = c_char_p
        self.c.gear_cuda_workspace_bytes.restype = c_size_t
        self.c.gear_cuda_workspace_bytes.argtypes = (POINTER(c_api.AttentionCall),)
        self.c.gear_cuda_compress_workspace_bytes.restype = c_size_t
        self.c.gear_cuda_compress_workspace_bytes.argtypes = (POINTER(c_int32),)
        workspace, stream = (c_void_p, c_size_t), c_void_p
        self.c.gear_cuda_attention.argtypes = (
            POINTER(c_api.AttentionCall), *workspace, c_void_p, stream, *c_api.ERROR_TEXT,
        )  # fmt: skip
        self.c.gear_cuda_compress_pages.argtypes = (
            POINTER(c_int32), c_void_p, c_void_p, c_int, c_void_p, *workspace, stream,
            *c_api.ERROR_TEXT,
        )  # fmt: skip
        self.c.gear_cuda_status.argtypes = (c_void_p, stream, *c_api.ERROR_TEXT)
        self.workspace = np.zeros(0, np.uint8)

    def compress_pages(self, keys_PCD, values_PCD, config, *, out=None):
        """Compress pages [P, C, D] of the buffer's type; return [P, page_words]."""
        members = c_api.page_config(config, keys_PCD.shape[-1])
        words = page_layout(config, keys_PCD.shape[-1]).page_words
        pages = np.empty((len(keys_PCD), words), np.int32) if out is None else out
        keys, values = (np.ascontiguousarray(x, config.buffer_dtype) for x in (keys_PCD, values_PCD))
        workspace = self._workspace(self.c.gear_cuda_compress_workspace_bytes(members))
        c_api.checked(
            self.c, "gear_cuda_compress_pages", members, keys.ctypes.data, values.ctypes.data,
            len(keys), pages.ctypes.data, *workspace, None,
        )  # fmt: skip
        self._check_status()
        return pages

    def attention(
        self, query_BSND, key_BSHD, value_BSHD, *, config, out=None, log_sum_exp=None, scale,
        softcap=0.0, sliding_window=0, layer=0, **state
    ):  # fmt: skip
        """Attend and append, as `gear_trt.native.attention`; all arrays contiguous."""
        if out is None:
            out = np.empty(query_BSND.shape, query_BSND.dtype)
        batch, seq_len, num_heads, head_dim = query_BSND.shape
        shape = c_api.AttentionShape(
            config=config,
            dtype=query_BSND.dtype.name,
            batch=batch,
            seq_len=seq_len,
            num_heads=num_heads,
            num_kv_heads=key_BSHD.shape[2],
            head_dim=head_dim,
            num_pages=len(state["page_pool"]),
            num_slots=len(state["residual_buffer"]),
            max_pages=state["page_table"].shape[-1],
        )
        arrays = {"query": query_BSND, "key": key_BSHD, "value": value_BSHD, "output": out, **state}
        for name, (dtype, sizes) in shape.arrays().items():
            assert arrays[name].dtype == dtype, name
            assert arrays[name].shape == sizes, name
            assert arrays[name].flags.c_contiguous, name
        call = c_api.attention_call(
            shape,
            {name: array.ctypes.data for name, array in arrays.items()},
            scale=scale,
            softcap=softcap,
            sliding_window=sliding_window,
            layer=layer,
        )
        workspace = self._workspace(self.c.gear_cuda_workspace_bytes(ctypes.byref(call)))
        lse = None if log_sum_exp is None else log_sum_exp.ctypes.data
        c_api.checked(self.c, "gear_cuda_attention", ctypes.byref(call), *workspace, lse, None)
        self._check_status()
        return out

    def _workspace(self, needed):
        """Address and size of aligned memory: zeros when it is new, then whatever calls leave."""
        if self.workspace.size < needed + 256:
            self.workspace = np.zeros(needed + 256, np.uint8)
        start = -self.workspace.ctypes.data % 256
        return self.workspace.ctypes.data + start, needed

    def _check_status(self):
        c_api.checked(self.c, "gear_cuda_status", self._workspace(0)[0], None)
