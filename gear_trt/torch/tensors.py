"""What the kernels need of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from gear_trt.spec import ACTIVATION_DTYPES

ACTIVATIONS = {getattr(torch, name): name for name in ACTIVATION_DTYPES}
"""Types that the op takes, and their names."""
_DTYPES = {"int32": torch.int32} | {name: dtype for dtype, name in ACTIVATIONS.items()}


def check_tensor(
    tensor: Tensor, dtype: str, dimensions: tuple[int, ...], device: torch.device, name: str
) -> None:
    """Check that a tensor is what the kernels will take it for.

    Raises:
        ValueError: It has another shape, type or device, or is not contiguous.
    """
    if tensor.dtype != _DTYPES[dtype] or tensor.shape != dimensions:
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}, must be {_DTYPES[dtype]} {dimensions}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, the others on {device}")
