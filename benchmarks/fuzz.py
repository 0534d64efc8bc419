"""Fuzz everything that reads files or indices, for a while: `python -m benchmarks.fuzz`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.records import append_rows
from tests.fuzz.run import Findings, fuzz
from tests.fuzz.targets import TARGETS

BATCH = 400
"""Inputs that a worker process takes."""


def run(targets: Sequence[str], first_seed: int, seconds: float) -> list[dict[str, Any]]:
    """Fuzz targets in turn and return a row for each.

    Args:
        targets: Keys of `TARGETS`.
        first_seed: Seed of the first input of each target; every seed gives the same input again.
        seconds: How long to begin new batches.
    """
    found = {name: Findings() for name in targets}
    spent = dict.fromkeys(targets, 0.0)
    seed, end = first_seed, time.monotonic() + seconds
    while time.monotonic() < end:
        for name in targets:
            start, known = time.monotonic(), len(found[name].faults)
            fuzz(name, seed, BATCH, found[name])
            spent[name] += time.monotonic() - start
            for fault in found[name].faults[known:]:
                print(name, *fault, flush=True)
        seed += BATCH
    return [
        {
            "benchmark": "fuzz",
            "target": name,
            "executions": findings.executions,
            "accepted": findings.accepted,
            "refused": findings.refused,
            "faults": len(findings.faults),
            "seconds": round(spent[name], 1),
            "first_seed": first_seed,
        }
        for name, findings in found.items()
    ]


def main() -> int:
    """Return 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--first-seed", type=int, default=1_000_000)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--record", action="store_true", help="append to results/fuzz.jsonl")
    options = parser.parse_args()
    rows = run(options.targets, options.first_seed, 60 * options.minutes)
    for row in rows:
        print(row)
    if options.record:
        append_rows("fuzz", rows)
    return 1 if any(row["faults"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
