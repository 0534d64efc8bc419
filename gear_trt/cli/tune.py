"""`gear tune`: which layers get how many bits, measured on the model itself."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gear_trt.cli import _tuning, _ui
from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec.config import DEFAULT_PRESET, PRESETS, CompressionConfig
from gear_trt.spec.config_file import config_text
from gear_trt.spec.model_config import layer_ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gear_trt.tune.tuning import Tuning

SCHEMA = "gear.tune/1"


def tune(
    model: Annotated[
        Path, typer.Argument(help="A Hugging Face folder or a GGUF file.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="TOML file to write, for `gear-export --config`.",
            show_default=False,
        ),
    ],
    target_bits: _tuning.TargetBits = None,
    target_kl: _tuning.TargetKl = None,
    text: _tuning.Text = None,
    tokens: _tuning.Tokens = None,
    preset: Annotated[
        str,
        typer.Option(help=f"Named config whose other fields stay: {', '.join(PRESETS)}."),
    ] = DEFAULT_PRESET,
    scale_keys: Annotated[
        bool,
        typer.Option(
            "--scale-keys/--no-scale-keys",
            help="Tune for an engine whose key channels are scaled, as gear-export does it.",
        ),
    ] = True,
    threads: _tuning.Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the TOML file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the log, and tracebacks of errors.")
    ] = False,
) -> None:
    """Choose bits, group size, rank and outliers of every layer by what they cost the model.

    Every layer is compressed alone, and what that costs the model is measured; then the cheapest
    choices for all layers are computed and measured together. Minutes for a small model on a CPU.
    """
    flags = _tuning.TuningFlags(target_bits, target_kl, text, tokens, threads)

    def action() -> None:
        target = flags.wanted()
        if target is None:
            raise typer.BadParameter("give one of the two", param_hint=_tuning.TARGETS)
        _check_output(output, force=force)
        base = CompressionConfig.preset(preset)
        from gear_trt.tune.checkpoint import open_tunable, tune_checkpoint, tuning_facts

        flags.use_threads()
        checkpoint = open_tunable(model)
        with _ui.progress_bar() as progress:
            tuning = tune_checkpoint(
                checkpoint, base, target, scale_keys=scale_keys, progress=progress
            )
        scaling = "with" if tuning.has_key_scales else "without"
        note = (
            f"gear tune {checkpoint.name}: {tuning.bits_per_element:.3f} bits per element,\n"
            f"tuned {tuning_facts(tuning, target).outcome},\n"
            f"{scaling} key scales"
        )
        output.write_text(config_text(tuning.config, note), encoding="utf-8")
        if json:
            _ui.emit_json(SCHEMA, {"output": str(output), **_fields(tuning)})
        else:
            _print(tuning, output)

    _ui.run(action, json=json, verbose=verbose)


def _check_output(path: Path, *, force: bool) -> None:
    """Refuse what could not be written at the end, minutes later."""
    if path.exists() and not force:
        raise GearError(
            ErrorCode.OUTPUT_EXISTS, f"{path} exists", hint="pass --force to replace it"
        )
    if not path.parent.is_dir():
        raise GearError(
            ErrorCode.MISSING_FILE, f"there is no folder {path.parent}", hint="make it first"
        )


def _fields(tuning: Tuning) -> dict[str, object]:
    return {
        "bits_per_element": tuning.bits_per_element,
        "kl": tuning.kl.mean,
        "kl_error": tuning.kl.error,
        "expected_kl": tuning.expected_kl,
        "tokens": tuning.tokens,
        "has_key_scales": tuning.has_key_scales,
        "layers": [config.model_dump() for config in tuning.layers],
    }


def _print(tuning: Tuning, output: Path) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_row("bits", f"{tuning.bits_per_element:.3f} per element")
    table.add_row(
        "KL",
        f"{tuning.kl.mean:.5f} ± {tuning.kl.error:.5f} on {tuning.tokens:,} tokens "
        f"(sum of the layers alone: {tuning.expected_kl:.5f})",
    )
    table.add_row("key scales", "yes" if tuning.has_key_scales else "no")
    for config, layers in _layers_by_config(tuning.layers):
        table.add_row(f"layers {layer_ranges(layers)}", _described(config))
    _ui.print_table(table)
    unscaled = "" if tuning.has_key_scales else " --no-scale-keys"
    typer.echo(f"next: gear-export MODEL -o out/ --config {shlex.quote(str(output))}{unscaled}")


def _layers_by_config(
    layers: Sequence[CompressionConfig],
) -> list[tuple[CompressionConfig, list[int]]]:
    """Return each config with its layers, those of most bits first."""
    groups: dict[CompressionConfig, list[int]] = {}
    for index, config in enumerate(layers):
        groups.setdefault(config, []).append(index)
    return sorted(
        groups.items(), key=lambda item: (-item[0].key_bits, -item[0].value_bits, item[1])
    )


def _described(config: CompressionConfig) -> str:
    corrections = [
        f"{name} {value}"
        for name, value in (("rank", config.rank), ("outliers", config.outliers))
        if value
    ]
    return ", ".join(
        [
            f"{config.key_bits}-bit keys",
            f"{config.value_bits}-bit values",
            f"groups of {config.group_size}",
            *corrections,
        ]
    )
