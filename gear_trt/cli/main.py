"""`gear`: look at engines, generate with them, time them, check the environment."""

from __future__ import annotations

import typer

from gear_trt.cli.bench import app as bench
from gear_trt.cli.build import build
from gear_trt.cli.doctor import doctor
from gear_trt.cli.generate import generate
from gear_trt.cli.inspect import inspect

app = typer.Typer(
    name="gear",
    help="Compressed KV caches inside ONNX Runtime and TensorRT engines. "
    "Make an engine with `gear-export`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(build)
app.command()(inspect)
app.command()(doctor)
app.add_typer(bench, name="bench")
