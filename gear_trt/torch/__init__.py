"""The kernels inside PyTorch and transformers.

Importing `attention` registers the op `gear::attention` with torch; importing `GearCache` registers
`attn_implementation="gear"` with transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gear_trt.torch.cache import GearCache
    from gear_trt.torch.device import compress_pages, raise_errors
    from gear_trt.torch.key_scales import measure_key_scales
    from gear_trt.torch.op import attention

__all__ = ["GearCache", "attention", "compress_pages", "measure_key_scales", "raise_errors"]

_HOMES = {
    "GearCache": "gear_trt.torch.cache",
    "attention": "gear_trt.torch.op",
    "compress_pages": "gear_trt.torch.device",
    "measure_key_scales": "gear_trt.torch.key_scales",
    "raise_errors": "gear_trt.torch.device",
}
"""Where each name lives: the op does not need transformers."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'gear_trt.torch' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
