"""GearAttention in TensorRT and TensorRT-RTX: the plugin library and what its kernels report."""

from __future__ import annotations

from gear_trt.tensorrt.plugin import build_info, library_path, load, raise_errors

__all__ = ["build_info", "library_path", "load", "raise_errors"]
