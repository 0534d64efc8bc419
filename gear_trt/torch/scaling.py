"""Which scales of key channels a cache takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from gear_trt.errors import ErrorCode, GearError


def check_values(key_scales: Sequence[Tensor | None], layers: int) -> None:
    """Check that there are scales for every layer, and that keys can be divided by them.

    Args:
        key_scales: Of each layer [H, D], or None.
        layers: How many the model has.

    Raises:
        GearError: `BAD_REQUEST`.
    """
    if len(key_scales) != layers:
        _refuse(f"key scales are for {len(key_scales)} layers, the model has {layers}")
    for index, scales_HD in enumerate(key_scales):
        if scales_HD is None:
            continue
        if not bool((scales_HD.isfinite() & (scales_HD > 0)).all()):
            _refuse(f"key scales of layer {index} are not all positive and finite")


def check_shape(scales_HD: Tensor, shape: tuple[int, int], layer: int) -> None:
    """Check that scales are those of a layer's heads and channels.

    Args:
        scales_HD: What should be [H, D].
        shape: H and D of the layer.
        layer: Its index.

    Raises:
        GearError: `BAD_REQUEST`.
    """
    if tuple(scales_HD.shape) != shape:
        _refuse(f"key scales of layer {layer} are {list(scales_HD.shape)}, its keys {list(shape)}")


def _refuse(reason: str) -> NoReturn:
    raise GearError(
        ErrorCode.BAD_REQUEST,
        reason,
        hint="pass what measure_key_scales(model, compression) returns for this model",
    )
