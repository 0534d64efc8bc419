"""The kernels inside PyTorch and transformers.

Importing this package registers the op `gear::attention` with torch; the first `GearCache` also
registers `attn_implementation="gear"` with transformers.
"""

from __future__ import annotations

from gear_trt.torch.op import attention

__all__ = ["attention"]
