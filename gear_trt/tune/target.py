"""What is asked of tuned layers, and what they are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gear_trt.errors import ErrorCode, GearError

DEFAULT_TOKENS = 512
MIN_TOKENS = 192
"""A text must fill pages of which some queries lie far enough behind."""


@dataclass(frozen=True, kw_only=True)
class TuningTarget:
    """What layers with configs of their own shall reach: the one or the other.

    Attributes:
        bits: Most bits per element, mean of all layers, everything included.
        kl: Largest mean KL divergence of the next token from the uncompressed cache's, nats.
        text: File to measure on; None lets the model write one.
        tokens: Of each of the two sequences to measure on; no more than the model's context.

    Raises:
        GearError: `BAD_REQUEST` for no target or two, or too few tokens.
    """

    bits: float | None = None
    kl: float | None = None
    text: Path | None = None
    tokens: int = DEFAULT_TOKENS

    def __post_init__(self) -> None:
        """Check what was given."""
        if (self.bits is None) == (self.kl is None):
            raise GearError(
                ErrorCode.BAD_REQUEST,
                "layers are tuned to bits per element or to a KL divergence",
                hint="give one of the two",
            )
        if self.tokens < MIN_TOKENS:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"sequences of {self.tokens} tokens are too short to tune on",
                hint=f"give {MIN_TOKENS} or more",
            )
