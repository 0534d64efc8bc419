"""Where recorded rows live: `benchmarks/results/*.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gear_trt.bench import records

RESULTS = Path(__file__).parent / "results"


def append_rows(name: str, rows: Iterable[dict[str, Any]]) -> Path:
    """Append rows to `results/<name>.jsonl` as they come, with machine, commit and versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    records.append_rows(path, rows)
    return path
