"""`gear`: look at engines, generate with them, serve them, time them, check the environment."""

from __future__ import annotations

import typer

from gear_trt.cli.bench import app as bench
from gear_trt.cli.build import build
from gear_trt.cli.doctor import doctor
from gear_trt.cli.eval import app as eval_
from gear_trt.cli.generate import generate
from gear_trt.cli.inspect import inspect
from gear_trt.cli.serve import serve
from gear_trt.cli.triton import triton
from gear_trt.cli.tune import tune

app = typer.Typer(
    name="gear",
    help="Compressed KV caches inside ONNX Runtime and TensorRT engines. "
    "Make an engine with `gear-export`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(serve)
app.command()(triton)
app.command()(build)
app.command()(inspect)
app.command()(tune)
app.command()(doctor)
app.add_typer(bench, name="bench")
app.add_typer(eval_, name="eval")
