"""The TensorRT flags of `gear-export` and `gear build`, and what they print of a build."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gear_trt.errors import ErrorCode, GearError
from gear_trt.tensorrt.library import Flavour

if TYPE_CHECKING:
    from gear_trt.export import TensorRTOptions
    from gear_trt.export.build.tensorrt import BuildReport

PANEL = "TensorRT: an engine beside the ONNX file"
_MEGA = 1e6


def _flag(*names: str, help: str, **how: Any) -> Any:  # noqa: ANN401 - as typer's
    return typer.Option(*names, help=help, rich_help_panel=PANEL, **how)


Tensorrt = Annotated[
    Flavour | None, _flag(help="Build an engine with the one or the other.", show_default="none")
]
PrintTrtexec = Annotated[
    bool,
    _flag(
        "--print-trtexec", help="Build nothing; print the command that builds the engine elsewhere."
    ),
]
MaxBatch = Annotated[
    int | None, _flag(help="Sequences of one call at most.", min=1, show_default="8")
]
MaxNewTokens = Annotated[
    int | None, _flag(help="Tokens of one prefill call at most.", min=1, show_default="512")
]
ComputeCapability = Annotated[
    list[str] | None,
    _flag(
        metavar="X.Y",
        help="GPU that TensorRT-RTX builds for, for instance 8.6; repeat it for more, or say "
        "current for the GPU at hand.",
        show_default="all from 8.0 on",
    ),
]
EmbedPlugin = Annotated[
    bool, _flag("--embed-plugin", help="Put the plugin library into the engine, not beside it.")
]
VersionCompatible = Annotated[
    bool, _flag("--version-compatible", help="Let later TensorRTs run the engine too.")
]
HardwareCompatible = Annotated[
    bool, _flag("--hardware-compatible", help="Let all GPUs from Ampere on run the engine.")
]
Refit = Annotated[bool, _flag("--refit", help="Let the engine's weights be replaced later.")]
WeightStreaming = Annotated[
    bool, _flag("--weight-streaming", help="Let the engine's weights stay in host memory.")
]
BuilderLevel = Annotated[
    int | None,
    _flag(
        help="Optimization level: higher builds longer.",
        min=0,
        max=5,
        show_default="TensorRT's",
    ),
]
TimingCache = Annotated[
    Path | None,
    _flag(
        help="File of kernel timings, read and written: builds again faster.", show_default=False
    ),
]


def _is_unsaid(value: object) -> bool:
    return value is None or value is False or value == ()


@dataclass(frozen=True)
class TensorRTFlags:
    """What the user said; None, False or () where nothing was."""

    max_batch: int | None
    max_new_tokens: int | None
    compute_capability: tuple[str, ...]
    embed_plugin: bool
    version_compatible: bool
    hardware_compatible: bool
    refit: bool
    weight_streaming: bool
    builder_level: int | None
    timing_cache: Path | None

    def options(self, flavour: Flavour) -> TensorRTOptions:
        """Return the options of a build."""
        from gear_trt.export import TensorRTOptions

        said = self._said()
        capabilities = said.pop("compute_capability", ())
        return TensorRTOptions(flavour=flavour, compute_capabilities=capabilities, **said)

    def wanted(self, flavour: Flavour | None, *, print_trtexec: bool) -> TensorRTOptions | None:
        """Return the options of `gear-export`'s build, or None where there is none.

        Args:
            flavour: Of `--tensorrt`; to print, None means TensorRT.
            print_trtexec: The command is to be printed.

        Raises:
            GearError: `BAD_CONFIG` for a flag that is of no use without a build, or to this one.
        """
        from gear_trt.export.build.tensorrt_plan import check_options

        if flavour is not None or print_trtexec:
            options = self.options(flavour or Flavour.TENSORRT)
            check_options(options)
            return options
        for name in self._said():
            raise GearError(
                ErrorCode.BAD_CONFIG,
                f"--{name.replace('_', '-')} needs --tensorrt",
                hint="pass --tensorrt tensorrt or --tensorrt tensorrt-rtx, or --print-trtexec",
            )
        return None

    def _said(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if not _is_unsaid(value)}


def describe(build: BuildReport) -> str:
    """Describe a build in a line."""
    facts = build.facts
    targets = ", ".join(facts.compute_capabilities) or "unknown"
    return (
        f"{facts.flavour} {facts.version}: {build.engine_bytes / _MEGA:,.1f} MB for compute "
        f"capability {targets}, built in {build.seconds:.1f} s with "
        f"{build.peak_memory_bytes / _MEGA:,.0f} MB"
    )
