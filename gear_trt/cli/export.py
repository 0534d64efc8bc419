"""`gear-export`: any decoder to an engine folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gear_trt.cli import _tensorrt, _tuning, _ui
from gear_trt.errors import ExitStatus
from gear_trt.spec.config import DEFAULT_PRESET, PRESETS, CompressionConfig
from gear_trt.spec.config_file import ConfigFile, choose_config
from gear_trt.spec.model_config import LayerRule
from gear_trt.tune.options import check_free

if TYPE_CHECKING:
    from gear_trt.export import ExportReport

SCHEMA = "gear.export/1"
EXAMPLE_PROMPT = "Why is the sky blue?"
MEGA = 1e6

_COMPRESSION = "Compression: each flag replaces a field of the preset"
_MODEL = "Model"
_FIELDS = CompressionConfig.model_json_schema()["properties"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _field(name: str) -> Any:  # noqa: ANN401 - options have no type of their own
    """Return the option of one field of the config, with the field's own description."""
    field = _FIELDS[name]
    values = field.get("enum") or [f"{field['minimum']} to {field['maximum']}"]
    return typer.Option(
        help=f"{field['description']} Values: {', '.join(map(str, values))}.",
        rich_help_panel=_COMPRESSION,
        show_default="preset",
    )


def _switch(name: str) -> Any:  # noqa: ANN401 - as above
    flag = name.replace("_", "-")
    return typer.Option(
        f"--{flag}/--no-{flag}",
        help=_FIELDS[name]["description"].removeprefix("1: "),
        rich_help_panel=_COMPRESSION,
        show_default="preset",
    )


@app.command()
def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="An .onnx file with a KV cache, a Hugging Face folder, or a GGUF file.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Engine folder to write.", show_default=False),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Named config: {', '.join(PRESETS)}.",
            rich_help_panel=_COMPRESSION,
            show_default=DEFAULT_PRESET,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help='TOML file: preset, fields, tables like \\[layers."0-3"]; flags override it.',
            rich_help_panel=_COMPRESSION,
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYERS:FIELD=N,...",
            help="Fields of single layers: 0:bits=8 (both sides), 0-3:value_bits=8,rank=2. Repeat "
            "it for more.",
            rich_help_panel=_COMPRESSION,
            show_default=False,
        ),
    ] = None,
    key_bits: Annotated[int | None, _field("key_bits")] = None,
    value_bits: Annotated[int | None, _field("value_bits")] = None,
    group_size: Annotated[int | None, _field("group_size")] = None,
    metadata_bits: Annotated[int | None, _field("metadata_bits")] = None,
    rank: Annotated[int | None, _field("rank")] = None,
    factor_bits: Annotated[int | None, _field("factor_bits")] = None,
    power_iters: Annotated[int | None, _field("power_iters")] = None,
    outliers: Annotated[int | None, _field("outliers")] = None,
    chunk: Annotated[int | None, _field("chunk")] = None,
    sinks: Annotated[int | None, _field("sinks")] = None,
    rotate_keys: Annotated[bool | None, _switch("rotate_keys")] = None,
    rotate_values: Annotated[bool | None, _switch("rotate_values")] = None,
    fit_ranges: Annotated[bool | None, _switch("fit_ranges")] = None,
    target_bits: _tuning.TargetBits = None,
    target_kl: _tuning.TargetKl = None,
    text: _tuning.Text = None,
    tokens: _tuning.Tokens = None,
    threads: _tuning.Threads = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the tokenizer.",
            rich_help_panel=_MODEL,
            show_default="beside the model",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(
            help="Type of a checkpoint's weights and activations; GPUs are at their best with "
            "float16 and bfloat16, CPUs do not run bfloat16.",
            rich_help_panel=_MODEL,
            show_default="float16 stays, else float32",
        ),
    ] = None,
    scale_keys: Annotated[
        bool,
        typer.Option(
            "--scale-keys/--no-scale-keys",
            help="Run the model once, layer by layer, and scale the channels of keys so that "
            "compressing them costs less; no byte more per token.",
            rich_help_panel=_MODEL,
        ),
    ] = True,
    max_context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest sequence, in tokens.",
            rich_help_panel=_MODEL,
            show_default="the model's",
        ),
    ] = None,
    tensorrt: _tensorrt.Tensorrt = None,
    print_trtexec: _tensorrt.PrintTrtexec = False,
    max_batch: _tensorrt.MaxBatch = None,
    max_new_tokens: _tensorrt.MaxNewTokens = None,
    compute_capability: _tensorrt.ComputeCapability = None,
    embed_plugin: _tensorrt.EmbedPlugin = False,
    version_compatible: _tensorrt.VersionCompatible = False,
    hardware_compatible: _tensorrt.HardwareCompatible = False,
    refit: _tensorrt.Refit = False,
    weight_streaming: _tensorrt.WeightStreaming = False,
    builder_level: _tensorrt.BuilderLevel = None,
    timing_cache: _tensorrt.TimingCache = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show which attention layers can be routed, and why not; write nothing.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an engine folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the log, and tracebacks of errors.")
    ] = False,
) -> None:
    """Export a decoder to an engine whose KV cache is compressed."""
    if output is None and not dry_run:
        raise typer.BadParameter("where to? Pass a folder, or --dry-run", param_hint="--output")
    if dry_run and (print_trtexec or tensorrt is not None):
        raise typer.BadParameter("a dry run builds no engine", param_hint="--tensorrt")
    if dry_run and (target_bits is not None or target_kl is not None):
        raise typer.BadParameter("a dry run measures nothing", param_hint=_tuning.TARGETS)
    tuning = _tuning.TuningFlags(target_bits, target_kl, text, tokens, threads)
    engine = _tensorrt.TensorRTFlags(
        max_batch=max_batch,
        max_new_tokens=max_new_tokens,
        compute_capability=tuple(compute_capability or ()),
        embed_plugin=embed_plugin,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        refit=refit,
        weight_streaming=weight_streaming,
        builder_level=builder_level,
        timing_cache=timing_cache,
    )
    overrides = {
        "key_bits": key_bits,
        "value_bits": value_bits,
        "group_size": group_size,
        "metadata_bits": metadata_bits,
        "rank": rank,
        "factor_bits": factor_bits,
        "power_iters": power_iters,
        "outliers": outliers,
        "chunk": chunk,
        "sinks": sinks,
        "rotate_keys": rotate_keys,
        "rotate_values": rotate_values,
        "fit_ranges": fit_ranges,
    }

    def action() -> None:
        file = ConfigFile() if config is None else ConfigFile.read(config)
        fields = {name: int(value) for name, value in overrides.items() if value is not None}
        rules = [LayerRule.parse(rule) for rule in layer or ()]
        chosen = choose_config(file, preset=preset, fields=fields, rules=rules)
        target = tuning.wanted()
        if target is not None:
            check_free({**file.fields, **fields})
        options = engine.wanted(tensorrt, print_trtexec=print_trtexec)
        from gear_trt.export import export_model, inspect_model, trtexec_command

        if target is not None:
            tuning.use_threads()
        with _ui.progress() as progress:
            if dry_run or output is None:
                report = inspect_model(
                    model, config=chosen, max_context=max_context, progress=progress
                )
            else:
                report = export_model(
                    model,
                    output,
                    config=chosen,
                    max_context=max_context,
                    tokenizer=tokenizer,
                    dtype=dtype,
                    scale_keys=scale_keys,
                    tuning=target,
                    force=force,
                    tensorrt=None if print_trtexec else options,
                    progress=progress,
                )
        command = None
        if print_trtexec and options is not None and report.output is not None:
            command = trtexec_command(report.output, options)
        if json:
            result = report.model_dump(mode="json")
            _ui.emit_json(SCHEMA, result if command is None else {**result, "trtexec": command})
        elif report.output is None:
            _ui.print_sites(report.sites, each=True)
        else:
            _print_engine(report, report.output)
            if command is not None:
                _print_trtexec(report.output, command)
        if not report.routable:
            raise typer.Exit(ExitStatus.UNSUPPORTED)

    _ui.run(action, json=json, verbose=verbose)


def _print_engine(report: ExportReport, output: str) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_row("engine", output)
    table.add_row("layers", f"{len(report.sites)} routed ({report.sites[0].form})")
    if report.cache is not None:
        cost = report.cache
        table.add_row(
            "cache",
            f"{cost.bits_per_element:.2f} bits per element, {cost.bytes_per_token:,.0f} bytes per "
            f"token (FP16: {cost.fp16_bytes_per_token:,})",
        )
    if report.tuning is not None:
        table.add_row("tuned", report.tuning.outcome)
    if report.scaled_layers:
        table.add_row("key scales", f"in {report.scaled_layers} layers")
    if report.model is not None:
        table.add_row("context", f"{report.model.max_context:,} tokens")
    if report.tensorrt is not None:
        table.add_row("TensorRT", _tensorrt.describe(report.tensorrt))
    table.add_row("size", f"{sum(report.file_bytes.values()) / MEGA:,.1f} MB")
    table.add_row("time", f"{sum(report.seconds.values()):.1f} s")
    _ui.print_table(table)
    if not report.has_tokenizer:
        _ui.stderr.print(
            "no tokenizer was found beside the model, so the engine takes token ids only; "
            "pass --tokenizer DIR to add one",
            soft_wrap=True,
        )
    if report.is_bfloat16:
        _ui.stderr.print(
            "the model's activations are bfloat16, with which ONNX Runtime computes on GPUs only; "
            "export it in float32 or float16 to run it on CPUs",
            soft_wrap=True,
        )
    quoted = shlex.quote(output)
    typer.echo(f'next: gear generate {quoted} -p "{EXAMPLE_PROMPT}"')


def _print_trtexec(output: str, command: str) -> None:
    _ui.stderr.print(
        f"to be run in {output}, beside libgear_trt_plugins.so:", highlight=False, soft_wrap=True
    )
    typer.echo(command)
