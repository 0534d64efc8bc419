"""The compression config: which parts of GEAR are on, and how many bits each one spends.

A `CompressionConfig` is the whole input of the page layout (`gear_trt.spec.layout`): two equal
configs and head dims give the same page. Presets are data, at the end of this file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gear_trt.errors import ErrorCode, GearError

PASS_THROUGH_BITS = 16
"""A side with this many bits or more stores its values as they are: no codes, no correction."""

Bits = Literal[2, 3, 4, 8, 16, 32]


class CompressionConfig(BaseModel):
    """How one page (`chunk` tokens of one KV head, K and V together) is stored.

    All integers, so that the same fields are ONNX node attributes, C struct members and layout
    variables. The terms are those of GEAR (arXiv 2403.05527, section 3).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_bits: Bits = Field(
        4, description="Bits per key code; 16 and 32 store FP16 and FP32 values."
    )
    value_bits: Bits = Field(
        4, description="Bits per value code; 16 and 32 store FP16 and FP32 values."
    )
    group_size: Literal[32, 64, 128] = Field(
        32, description="Elements that share a scale and a min: tokens for K, channels for V."
    )
    metadata_bits: Literal[8, 16] = Field(
        8, description="16: FP16 scales and mins; 8: two-level, 8-bit with FP16 super-scales."
    )
    rank: Annotated[int, Field(ge=0, le=8)] = Field(
        0, description="Rank of the low-rank correction of the quantization error; 0 turns it off."
    )
    factor_bits: Literal[4, 8, 16] = Field(
        4, description="Bits per element of the low-rank factors; 16 is FP16."
    )
    power_iters: Annotated[int, Field(ge=1, le=8)] = Field(
        3, description="Power iterations that fit the low-rank factors."
    )
    outliers: Literal[0, 2, 4] = Field(
        0,
        description="Outliers kept per vector (K: channel, V: token), half largest, half smallest.",
    )
    chunk: Literal[64, 128] = Field(64, description="Tokens per page.")
    sinks: Annotated[int, Field(ge=0, le=64)] = Field(
        4, description="First tokens of a sequence that stay FP16 for ever."
    )
    rotate_keys: Literal[0, 1] = Field(
        1, description="1: Hadamard transform of K (after RoPE) inside each head."
    )
    rotate_values: Literal[0, 1] = Field(
        1, description="1: Hadamard transform of V inside each head, undone on the output."
    )

    fit_ranges: Literal[0, 1] = Field(
        1,
        description="1: Ranges of groups are fitted to their values, not taken from the extremes.",
    )

    @model_validator(mode="after")
    def _refuse_corrections_of_exact_values(self) -> Self:
        for side, bits, rotated in (
            ("key", self.key_bits, self.rotate_keys),
            ("value", self.value_bits, self.rotate_values),
        ):
            if bits >= PASS_THROUGH_BITS and rotated:
                raise ValueError(
                    f"rotate_{side}s=1 with {side}_bits={bits}: unquantized values need no "
                    "rotation, set it to 0"
                )
        if (self.key_bits == 32) != (self.value_bits == 32):
            raise ValueError("32 bits are for a lossless cache: set them on both sides")
        quantized = min(self.key_bits, self.value_bits) < PASS_THROUGH_BITS
        if (self.rank or self.outliers) and not quantized:
            raise ValueError("rank and outliers correct quantized values, and no side has any")
        return self

    @property
    def buffer_dtype(self) -> Literal["float16", "float32"]:
        """Element type of the residual buffer: FP16, or FP32 where pages are FP32."""
        return "float32" if self.key_bits == 32 else "float16"

    @property
    def scales_keys(self) -> bool:
        """Whether scales of key channels change what is stored: only rotation spreads errors."""
        return self.key_bits < PASS_THROUGH_BITS and bool(self.rotate_keys)

    @classmethod
    def preset(cls, name: str, **overrides: int) -> CompressionConfig:
        """Return the preset `name` with single fields replaced.

        Args:
            name: A key of `PRESETS`.
            **overrides: Fields of this class that replace the preset's.

        Raises:
            GearError: `UNKNOWN_PRESET`, or `BAD_CONFIG` for values that do not fit.
        """
        if name not in PRESETS:
            raise GearError(
                ErrorCode.UNKNOWN_PRESET,
                f"unknown preset '{name}'",
                hint=f"choose one of: {', '.join(PRESETS)}",
            )
        return cls.checked({**PRESETS[name], **overrides})

    @classmethod
    def checked(cls, fields: dict[str, Any], *, where: str | None = None) -> CompressionConfig:
        """Build a config from untrusted fields.

        Args:
            fields: By name.
            where: Where the user wrote them, for the message.

        Raises:
            GearError: `BAD_CONFIG`, with one line per wrong field.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            lines = [
                f"{'.'.join(map(str, item['loc'])) or 'config'}: {item['msg']}"
                for item in error.errors()
            ]
            what = where or "the compression config"
            raise GearError(
                ErrorCode.BAD_CONFIG,
                f"{what} is not valid: " + "; ".join(lines),
                hint="see docs/layout.md for the fields and their ranges",
            ) from None


_AS_IT_IS = {"sinks": 0, "rotate_keys": 0, "rotate_values": 0, "fit_ranges": 0}

PRESETS: dict[str, dict[str, int]] = {
    "exact": {"key_bits": 32, "value_bits": 32, **_AS_IT_IS},
    "fp16": {"key_bits": 16, "value_bits": 16, **_AS_IT_IS},
    "k4v4": {"key_bits": 4, "value_bits": 4},
    "k4v2": {"key_bits": 4, "value_bits": 2},
    "k3v2": {"key_bits": 3, "value_bits": 2},
    "k2v2": {"key_bits": 2, "value_bits": 2},
    "near-lossless": {"key_bits": 4, "value_bits": 4, "chunk": 128},
    "balanced": {"key_bits": 4, "value_bits": 3, "chunk": 128},
    "small": {"key_bits": 3, "value_bits": 2, "chunk": 128},
    "tiny": {"key_bits": 3, "value_bits": 2, "chunk": 128, "group_size": 64},
    "paper-4bit": {
        "key_bits": 4,
        "value_bits": 4,
        "group_size": 128,
        "metadata_bits": 16,
        "rank": 4,
        "factor_bits": 16,
        "outliers": 2,
        **_AS_IT_IS,
    },
    "paper-2bit": {
        "key_bits": 2,
        "value_bits": 2,
        "group_size": 64,
        "metadata_bits": 16,
        "rank": 4,
        "factor_bits": 16,
        "outliers": 2,
        **_AS_IT_IS,
    },
}
"""Named configs. `paper-*` is GEAR as published (KCVT at 4 bits, KIVI g=64 at 2 bits, s = 2 %,
r = 4), fitted per page; the others have sinks, rotation, fitted ranges and 8-bit metadata, no
corrections. The four with names are the best of their size that was found (docs/presets.md)."""

DEFAULT_PRESET = "k4v4"
