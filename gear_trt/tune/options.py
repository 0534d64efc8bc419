"""What the solver may give to a layer: configs that differ in what single layers may have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import CompressionConfig
from gear_trt.spec.config import PASS_THROUGH_BITS

Side = Literal["key", "value"]
SIDES: tuple[Side, ...] = ("key", "value")

BITS = (2, 3, 4, 8)
VARIANTS: tuple[Mapping[str, int], ...] = (
    {"group_size": 32, "rank": 0, "outliers": 0},
    {"group_size": 64, "rank": 0, "outliers": 0},
    {"group_size": 32, "rank": 2, "outliers": 0},
    {"group_size": 32, "rank": 0, "outliers": 2},
)
"""What both sides of a layer share. Rank and outliers that cost more than a bit per element are not
worth their bytes on any model tried."""
CHOSEN_FIELDS = ("key_bits", "value_bits", *VARIANTS[0])
"""What the solver chooses for each layer."""


@dataclass(frozen=True)
class SideOption:
    """One side (K or V) of a layer compressed, the other left alone.

    Attributes:
        side: Which one.
        bits: Bits per code.
        variant: Index into `VARIANTS`.
    """

    side: Side
    bits: int
    variant: int

    def config(self, base: CompressionConfig) -> CompressionConfig:
        """Return `base` with this side as the option says and the other side in FP16."""
        rotation = f"rotate_{self.side}s"
        return uncompressed(base).model_copy(
            update={
                f"{self.side}_bits": self.bits,
                rotation: getattr(base, rotation),
                **VARIANTS[self.variant],
            }
        )


@dataclass(frozen=True)
class LayerOption:
    """Both sides of a layer compressed, by a common variant."""

    key: SideOption
    value: SideOption

    def config(self, base: CompressionConfig) -> CompressionConfig:
        """Return `base` as the option says."""
        fields = {"key_bits": self.key.bits, "value_bits": self.value.bits}
        return base.model_copy(update={**fields, **VARIANTS[self.key.variant]})


def uncompressed(base: CompressionConfig) -> CompressionConfig:
    """Return `base` with both sides in FP16."""
    return base.model_copy(
        update={
            "key_bits": PASS_THROUGH_BITS,
            "value_bits": PASS_THROUGH_BITS,
            "rotate_keys": 0,
            "rotate_values": 0,
            "rank": 0,
            "outliers": 0,
        }
    )


def check_base(base: CompressionConfig) -> None:
    """Refuse configs that compress nothing: there is nothing to keep of them.

    Raises:
        GearError: `BAD_REQUEST`.
    """
    if min(base.key_bits, base.value_bits) >= PASS_THROUGH_BITS:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"a config of {base.key_bits} bits cannot be tuned: it compresses nothing",
            hint="start from another --preset",
        )


def check_free(fields: Collection[str]) -> None:
    """Refuse fields that somebody set for all layers where tuning chooses them for each.

    Raises:
        GearError: `BAD_CONFIG`.
    """
    for name in CHOSEN_FIELDS:
        if name in fields:
            raise GearError(
                ErrorCode.BAD_CONFIG,
                f"{name} is set, and tuning chooses it for each layer",
                hint=f"leave out --{name.replace('_', '-')}, and {name} of a config file",
            )


def side_options() -> tuple[SideOption, ...]:
    """Return every option of every side."""
    return tuple(
        SideOption(side, bits, variant)
        for side in SIDES
        for variant in range(len(VARIANTS))
        for bits in BITS
    )


def layer_options() -> Iterator[LayerOption]:
    """Yield every pair of a key's and a value's option that one page can hold."""
    options = side_options()
    for key in options:
        for value in options:
            if key.side == "key" and value.side == "value" and key.variant == value.variant:
                yield LayerOption(key, value)
