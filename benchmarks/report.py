"""Numbers of `docs/benchmarks.md`, from recorded rows only.

    python -m benchmarks.report [--check]

Replaces what stands between the markers of the page by tables of the newest recorded run.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS
from gear_trt.bench.records import MODEL, OPERATOR

TARGET = "target"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PICTURES = PAGE.with_suffix("")
BEGIN = "<!-- numbers: written by `python -m benchmarks.report`, do not edit -->"
END = "<!-- end of numbers -->"
NOTHING = "No run has been recorded yet."
MILLI, MEGA, GIGA = 1e3, 1e6, 1e9

Record = dict[str, Any]


def newest_run(path: Path) -> list[Record]:
    """Return the rows of the day and kind of machine recorded last; [] without a file."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    day, cpu = rows[-1]["time"][:10], rows[-1]["cpu"]
    return [row for row in rows if row["time"].startswith(day) and row["cpu"] == cpu]


def numbers(rows: Sequence[Record]) -> str:
    """Return the tables of a run as Markdown."""
    if not rows:
        return NOTHING
    return "\n".join(
        [
            *_machine(rows[-1]),
            *_targets([row for row in rows if row["benchmark"] == TARGET]),
            *_operator([row for row in rows if row["benchmark"] == OPERATOR]),
            *_model([row for row in rows if row["benchmark"] == MODEL]),
            *_pictures(),
        ]
    ).strip()


def _machine(row: Record) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    state = " with local changes" if row["dirty"] else ""
    yield f"Recorded {row['time'][:10]}, last at commit {row['commit']}{state}: {row['cpu']}, "
    yield f"{row['cores']} cores, {', '.join(row['cpu_flags'])}; {versions}."
    yield ""


def _targets(rows: Sequence[Record]) -> Iterator[str]:
    newest = {row["what"]: row for row in rows}
    if not newest:
        return
    yield from ("### Targets", "", "| target | must be | is | |", "|---|---|---|---|")
    for row in newest.values():
        value = "not measured" if row["value"] is None else f"{row['value']:.3g}"
        bound = f"{'≤' if row['is_most'] else '≥'} {row['bound']:g}"
        verdict = "met" if row["is_met"] else "**missed**"
        yield f"| {row['what']} | {bound} | {value} | {verdict} |"
    yield ""


def _operator(rows: Sequence[Record]) -> Iterator[str]:
    places: dict[str, dict[str, Record]] = {}
    for row in rows:
        doing = "decode" if row["new_tokens"] == 1 else f"prefill of {row['new_tokens']}"
        place = (
            f"{doing}, heads {row['heads']}, context {row['context']}, batch {row['batch']}, "
            f"threads {row['threads']}"
        )
        places.setdefault(place, {})[row["candidate"]] = row
    if places:
        yield from ("### The operator", "")
        yield "| candidate | ms | min | ± % | faster than ORT FP32 | GB/s | bytes/token | NMSE |"
        yield "|---|---|---|---|---|---|---|---|"
    for place, candidates in places.items():
        yield f"| **{place}** | | | | | | | |"
        for name, row in candidates.items():
            form = row["cache"].partition(" ")[2]
            speedup = "–" if row["speedup"] is None else f"{row['speedup']:.2f}"
            yield (
                f"| {name} {form}".rstrip()
                + f" | {row['seconds'] * MILLI:.3f} | {row['seconds_min'] * MILLI:.3f} "
                f"| {100 * row['seconds_mad'] / row['seconds']:.1f} | {speedup} "
                f"| {row['bytes_per_second'] / GIGA:.2f} | {row['bytes_per_token']:.0f} "
                f"| {row['nmse']:.1e} |"
            )
    yield ""


def _model(rows: Sequence[Record]) -> Iterator[str]:
    newest = {(row["context"], row["candidate"]): row for row in rows}
    if newest:
        yield from ("### The whole model", "")
        yield (
            "| candidate | context | prefill tokens/s | decode tokens/s | faster | "
            "ms per token for the context | cache MB | peak MB |"
        )
        yield "|---|---|---|---|---|---|---|---|"
    for row in newest.values():
        yield (
            f"| {row['candidate']} | {row['context']} | {row['prefill_tokens_per_second']:.0f} "
            f"| {row['decode_tokens_per_second']:.1f} | {row['speedup']:.2f} "
            f"| {row['seconds_of_context'] * MILLI:.2f} | {row['cache_bytes'] / MEGA:.1f} "
            f"| {row['peak_memory_bytes'] / MEGA:.0f} |"
        )
    yield ""


def _pictures() -> Iterator[str]:
    for file in sorted(PICTURES.glob("*.svg")):
        yield f"![{file.stem.replace('_', ' against ')}]({PICTURES.name}/{file.name})"
        yield ""


def filled(page: str, text: str, *, begin: str = BEGIN) -> str:
    """Return a page with `text` between its markers.

    Raises:
        ValueError: The page has no markers.
    """
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(END)}", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no lines\n{begin}\n{END}")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{END}", page)


def write() -> None:
    """Write the page."""
    PAGE.write_text(filled(PAGE.read_text(), numbers(newest_run(RESULTS / "cpu.jsonl"))))


def main() -> int:
    """Write the page, or with `--check` say whether it is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on drift")
    is_check = parser.parse_args().check
    page = PAGE.read_text()
    wanted = filled(page, numbers(newest_run(RESULTS / "cpu.jsonl")))
    if is_check and page != wanted:
        print(f"{PAGE} is stale: run `python -m benchmarks.report`")
        return 1
    if not is_check:
        PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
