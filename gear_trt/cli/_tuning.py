"""The flags of `gear tune`, which `gear-export` has too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gear_trt.errors import ErrorCode, GearError
from gear_trt.tune.target import DEFAULT_TOKENS, MIN_TOKENS, TuningTarget

PANEL = "Tuning: layers with bits of their own, measured on the model"
TARGETS = "--target-bits, --target-kl"


def _flag(help: str, **how: Any) -> Any:  # noqa: ANN401 - as typer's
    return typer.Option(help=help, rich_help_panel=PANEL, **how)


TargetBits = Annotated[
    float | None,
    _flag("Most bits per element, everything included.", min=0, show_default=False),
]
TargetKl = Annotated[
    float | None,
    _flag(
        "Largest KL divergence of the next token from the uncompressed cache's.",
        min=0,
        show_default=False,
    ),
]
Text = Annotated[
    Path | None,
    _flag(
        "Text to measure on, like what the model will read.",
        show_default="one that the model writes",
    ),
]
Tokens = Annotated[
    int | None,
    _flag(
        "Tokens of each of the two sequences to measure on.",
        min=MIN_TOKENS,
        show_default=str(DEFAULT_TOKENS),
    ),
]
Threads = Annotated[int | None, _flag("CPU threads to measure with.", min=1, show_default="1")]


@dataclass(frozen=True)
class TuningFlags:
    """What the user said; None where nothing was."""

    target_bits: float | None
    target_kl: float | None
    text: Path | None
    tokens: int | None
    threads: int | None

    def wanted(self) -> TuningTarget | None:
        """Return the target, or None where there is none.

        Raises:
            typer.BadParameter: There are two.
            GearError: `BAD_CONFIG` for a flag that is of no use without a target.
        """
        if self.target_bits is not None and self.target_kl is not None:
            raise typer.BadParameter("give one of the two", param_hint=TARGETS)
        if self.target_bits is not None or self.target_kl is not None:
            return TuningTarget(
                bits=self.target_bits,
                kl=self.target_kl,
                text=self.text,
                tokens=self.tokens or DEFAULT_TOKENS,
            )
        for name in ("text", "tokens", "threads"):
            if getattr(self, name) is not None:
                raise GearError(
                    ErrorCode.BAD_CONFIG,
                    f"--{name} needs a target to tune layers to",
                    hint="pass --target-bits or --target-kl",
                )
        return None

    def use_threads(self) -> None:
        """Let torch compute with as many threads as the user said."""
        import torch

        torch.set_num_threads(self.threads or 1)
