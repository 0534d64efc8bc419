"""Ratios between rows, and how they stand to the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_shapes import TARGETS, Target

Row = dict[str, Any]


def with_ratio(row: Row, rows: Sequence[Row]) -> Row:
    """Add to a timed row: rate, share of the ceiling, ratio to the best FP16 of its shape.

    Args:
        row: A row of any kind.
        rows: Those of the same run before it.
    """
    ceiling = next((row["gb_per_s"] for row in rows if row["kind"] == "ceiling"), None)
    return _with_ratios(row, rows, ceiling) if _is_timed(row) else row


def _is_timed(row: Row) -> bool:
    return row["kind"] in ("decode", "peer") and "us" in row


def _with_ratios(row: Row, rows: Sequence[Row], ceiling: float | None) -> Row:
    rate = row["bytes"] / row["us"] / 1e3
    added: Row = {"gb_per_s": rate, "ceiling_share": rate / ceiling if ceiling else None}
    if row["kind"] == "decode":
        best = _best_fp16(row, rows)
        added["best_fp16"] = best["peer"] if best else None
        added["best_fp16_us"] = best["us"] if best else None
        added["ratio"] = best["us"] / row["us"] if best else None
    return {**row, **added}


def _best_fp16(row: Row, rows: Sequence[Row]) -> Row | None:
    peers = [
        peer
        for peer in rows
        if peer["kind"] == "peer"
        and peer["is_fp16"]
        and "us" in peer
        and all(peer[key] == row[key] for key in ("batch", "context", "group"))
    ]
    return min(peers, key=lambda peer: float(peer["us"]), default=None)


@dataclass(frozen=True)
class Verdict:
    """How the rows stand to one target; `worst` is None where no row speaks of it."""

    target: Target
    worst: float | None
    best: float | None

    @property
    def text(self) -> str:
        """`moonshot`, `met`, `missed` or `not measured`; the worst row decides."""
        if self.worst is None:
            return "not measured"
        moonshot = self.target.moonshot
        if moonshot is not None and self.target.is_met(self.worst, moonshot):
            return "moonshot"
        return "met" if self.target.is_met(self.worst, self.target.must) else "missed"


def judge(rows: Sequence[Row], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """Compare rows with targets."""
    verdicts = []
    for target in targets:
        values = sorted(float(row[target.field]) for row in rows if _speaks_of(row, target))
        if target.is_upper:
            values.reverse()
        verdicts.append(
            Verdict(target, values[0], values[-1]) if values else Verdict(target, None, None)
        )
    return verdicts


def _speaks_of(row: Row, target: Target) -> bool:
    return row["kind"] == target.kind and target.applies(row)


def summary(rows: Sequence[Row]) -> str:
    """A table of all decode rows, one of whole models, and one of the targets."""
    lines = ["| B | context | G | config | µs | best FP16 µs | ratio | of ceiling | NMSE |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    lines += [
        f"| {row['batch']} | {row['context']} | {row['group']} | {row['config']} | {row['us']:.1f} "
        f"| {_number(row['best_fp16_us'], '.1f')} | {_number(row['ratio'], '.2f')} "
        f"| {_number(row['ceiling_share'], '.0%')} | {row['nmse']:.1e} |"
        for row in rows
        if row["kind"] == "decode"
    ]
    if models := throughput_table(rows):
        lines += ["", models]
    lines += ["", "| target | must | moonshot | worst | best | |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {verdict.target.name} | {verdict.target.must} | {verdict.target.moonshot or '–'} "
        f"| {_number(verdict.worst, '.3g')} | {_number(verdict.best, '.3g')} | {verdict.text} |"
        for verdict in judge(rows)
    ]
    return "\n".join(lines)


def throughput_table(rows: Sequence[Row]) -> str:
    """A table of the rows of whole models; empty where there are none."""
    lines = [_throughput_line(row) for row in rows if row["kind"] == "throughput"]
    titles = ["memory", "cache", "B", "tokens/s", "ratio", "longest step ms", "peak GB"]
    titles += ["less memory", "NMSE"]
    head = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return "\n".join([*head, *lines]) if lines else ""


def _throughput_line(row: Row) -> str:
    place = f"| {row['memory']} | {row['config']} | {row['batch']} "
    if "failure" in row:
        return f"{place}| {row['failure']} | | | | | |"
    peak, limit = row["peak_bytes"] / 1e9, row["limit_bytes"] / 1e9
    return (
        f"{place}| {row['tokens_per_second']:.0f} | {_number(row.get('ratio'), '.2f')} "
        f"| {row['ms_longest']:.1f} | {peak:.1f} of {limit:.1f} "
        f"| {_number(row.get('memory_ratio'), '.2f')} | {row['nmse']:.1e} |"
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
