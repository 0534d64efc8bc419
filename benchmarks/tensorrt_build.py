"""What building a TensorRT engine took.

    python -m benchmarks.tensorrt_build FOLDER...

writes a row per engine folder that this machine has exported with `--tensorrt` to
`results/tensorrt.jsonl`, from the folder's `report.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.records import append_rows
from gear_trt.export import ExportReport


def row_of(folder: Path) -> dict[str, Any]:
    """Return the row of an engine folder that has a TensorRT engine."""
    report = ExportReport.read(folder)
    if report.tensorrt is None:
        raise SystemExit(f"{folder} has no TensorRT engine: export it with --tensorrt")
    build = report.tensorrt.model_dump(mode="json")
    return {
        "model": Path(report.source).name,
        "dtype": report.sites[0].dtype,
        "layers": len(report.sites),
        **build.pop("facts"),
        **build,
        "export_seconds": round(sum(report.seconds.values()) - report.tensorrt.seconds, 3),
    }


if __name__ == "__main__":
    print(append_rows("tensorrt", [row_of(Path(folder)) for folder in sys.argv[1:]]))
