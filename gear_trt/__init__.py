"""Compressed KV caches (GEAR, arXiv 2403.05527) inside ONNX Runtime and TensorRT engines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gear_trt.errors import GearError
    from gear_trt.export import export_model
    from gear_trt.runtime.engine import Engine, load
    from gear_trt.spec.config import CompressionConfig

__all__ = ["CompressionConfig", "Engine", "GearError", "export_model", "load"]

_HOMES = {
    "CompressionConfig": "gear_trt.spec.config",
    "Engine": "gear_trt.runtime.engine",
    "GearError": "gear_trt.errors",
    "export_model": "gear_trt.export",
    "load": "gear_trt.runtime.engine",
}
"""Where each name lives; nothing heavy is imported before it is used."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'gear_trt' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
