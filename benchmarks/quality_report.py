"""Tables and pictures of `docs/quality.md`, from recorded rows only.

    python -m benchmarks.quality_report [--check]

Replaces what stands between the markers of the page, and draws `docs/quality/*.svg`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from benchmarks.quality_candidates import (
    BASES,
    BUFFERS,
    CODES,
    FRONTIER,
    LADDER,
    PARTS,
    UNSCALED,
    WIDTHS,
    variant,
)
from benchmarks.records import RESULTS
from benchmarks.report import filled
from gear_trt.bench.grid import parse_config
from gear_trt.eval import plot
from gear_trt.eval.candidate import GEAR, UNSCALED_SUFFIX
from gear_trt.eval.greedy import GreedyRow
from gear_trt.eval.layers import LayerRow
from gear_trt.eval.passkey import PasskeyRow
from gear_trt.eval.records import EvalRow, newest, read_rows
from gear_trt.spec import CompressionConfig

ROWS = RESULTS / "quality.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "quality.md"
PICTURES = PAGE.with_suffix("")
BEGIN = "<!-- numbers: written by `python -m benchmarks.quality_report`, do not edit -->"
NOTHING = "No run has been recorded yet."

TARGETS = {
    "near-lossless": (4.55, 0.0015),
    "balanced": (4.05, 0.0025),
    "small": (3.05, 0.012),
    "tiny": (2.8, 0.055),
}
"""Most bits per element and most KL of the presets that earn their name."""

OURS = (*FRONTIER, *(name + UNSCALED_SUFFIX for name in UNSCALED))
"""Rows of ours that tables and pictures show beside those of peers."""

_Row = TypeVar("_Row", bound=BaseModel)


def rows() -> list[EvalRow]:
    """Return the newest recorded row of each cache on each model and text.

    Rows of a config whose name means another one today are left out.
    """
    return newest([row for row in _recorded(EvalRow) if _is_current(row)])


def numbers() -> str:
    """Return the tables and pictures as Markdown."""
    parts = [
        *(line for group in _groups(rows()) for line in _quality(group)),
        *_pictures(),
        *_greedy(_recorded(GreedyRow)),
        *_passkeys(_recorded(PasskeyRow)),
    ]
    return "\n".join(parts).strip() or NOTHING


def _is_current(row: EvalRow) -> bool:
    if row.kind != GEAR:
        return True
    name = row.candidate.removesuffix(UNSCALED_SUFFIX)
    return row.config == parse_config(name).config.model_dump()


def _recorded(kind: type[_Row]) -> list[_Row]:
    return read_rows(ROWS, kind) if ROWS.is_file() else []


def _groups(every: Sequence[EvalRow]) -> list[list[EvalRow]]:
    groups: dict[tuple[str, str], list[EvalRow]] = {}
    for row in every:
        groups.setdefault((row.model, row.text), []).append(row)
    return list(groups.values())


def _quality(group: list[EvalRow]) -> Iterator[str]:
    first = group[0]
    yield f"### {first.model} on {first.text}"
    yield ""
    yield (
        f"{first.tokens:,} tokens scored, {first.sequences} sequences of {first.context:,}; "
        f"perplexity {first.exact_perplexity:.2f} uncompressed."
    )
    yield ""
    yield from _frontier([row for row in group if row.candidate in OURS or row.kind != GEAR])
    yield from _targets(group)
    yield from _parts(group)


def _frontier(group: Sequence[EvalRow]) -> Iterator[str]:
    peers = [row for row in group if row.kind != GEAR]
    yield "| cache | bits | bytes/token | buffer | KL | top-1 % | perplexity × | best peer |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in sorted(group, key=lambda row: -row.bits_per_element):
        yield (
            f"| {_label(row)} | {row.bits_per_element:.2f} | {row.bytes_per_token:,.0f} "
            f"| {row.buffer} | {row.kl:.5f} ± {row.kl_error:.5f} "
            f"| {100 * row.top1:.1f} ± {100 * row.top1_error:.1f} "
            f"| {row.perplexity_ratio:.4f} ± {row.perplexity_ratio_error:.4f} "
            f"| {_best_peer(row, peers) if row.kind == GEAR else ''} |"
        )
    yield ""


def _label(row: EvalRow) -> str:
    if row.kind == GEAR:
        return f"**{row.candidate}**"
    return f"{row.candidate} (simulated)" if row.is_simulated else row.candidate


def _best_peer(row: EvalRow, peers: Sequence[EvalRow]) -> str:
    """Name the peer with the least KL among those that spend no more bits and have its buffer."""
    no_larger = [
        peer
        for peer in peers
        if peer.bits_per_element <= row.bits_per_element and peer.buffer == row.buffer
    ]
    if not no_larger:
        return "none with this buffer"
    best = min(no_larger, key=lambda peer: peer.kl)
    return f"{best.candidate}: {best.kl:.5f} at {best.bits_per_element:.2f}"


def _targets(group: Sequence[EvalRow]) -> Iterator[str]:
    found = {row.candidate: row for row in group}
    if not found.keys() & TARGETS.keys():
        return
    by_config = _by_config(group)
    peers = [row for row in group if row.kind != GEAR]
    yield "| preset | must be | is | | best peer | keys unscaled | with pages of 64 tokens |"
    yield "|---|---|---|---|---|---|---|"
    for name, (bits, kl) in TARGETS.items():
        row, unscaled = found.get(name), found.get(name + UNSCALED_SUFFIX)
        small = by_config.get(_key({**(row.config or {}), "chunk": 64})) if row else None
        yield (
            f"| {name} | KL ≤ {kl} at ≤ {bits} bits | {_point(row)} | {_verdict(row, bits, kl)} "
            f"| {_best_peer(row, peers) if row else '–'} | {_point(unscaled)} | {_point(small)} |"
        )
    yield ""


def _verdict(row: EvalRow | None, bits: float, kl: float) -> str:
    is_met = row is not None and row.kl <= kl and row.bits_per_element <= bits
    return "met" if is_met else "**missed**"


def _by_config(group: Sequence[EvalRow]) -> dict[tuple[tuple[str, int], ...], EvalRow]:
    """Rows of configs that all layers share, but for those whose keys could have been scaled."""
    return {
        _key(row.config): row
        for row in group
        if row.config and not row.layer_configs and not row.candidate.endswith(UNSCALED_SUFFIX)
    }


def _point(row: EvalRow | None) -> str:
    return "not measured" if row is None else f"KL {row.kl:.5f} at {row.bits_per_element:.2f}"


def _parts(group: Sequence[EvalRow]) -> Iterator[str]:
    """What each part of GEAR is worth: beside codes alone that spend the same bits."""
    by_config = _by_config(group)
    for base in BASES:
        ladder = [by_config.get(_key(_config(base, *bits))) for bits in LADDER]
        codes = sorted(
            ((row.bits_per_element, row.kl) for row in ladder if row is not None),
        )
        found = [
            (f"{width}/{width}", part, row, interpolated(codes, row.bits_per_element))
            for width in WIDTHS
            for part in PARTS
            if (row := by_config.get(_key(_config(base, width, width, part)))) is not None
        ]
        compared = [(row, alone) for _, part, row, alone in found if part != CODES and alone]
        if not compared:
            continue
        preset, sizes = BASES[base]
        fields = CompressionConfig.preset(preset)
        yield (
            f"The parts of GEAR {base} (groups of {fields.group_size}, rank {sizes['rank']} in "
            f"{fields.factor_bits} bits, {sizes['outliers']} outliers per vector); the last "
            "columns say what codes alone would have at the same bits, between measured ones:"
        )
        yield ""
        yield "| codes | parts | bits | KL | codes alone | parts / codes alone |"
        yield "|---|---|---|---|---|---|"
        yield from (_part_line(*item) for item in found)
        better = sum(row.kl < alone for row, alone in compared)
        yield ""
        yield f"The parts beat codes alone of the same bits in {better} of {len(compared)} cases."
        yield ""


def _part_line(width: str, part: str, row: EvalRow, alone: float | None) -> str:
    has_peer = alone is not None and part != CODES
    same = f"{alone:.5f} | {row.kl / alone:.2f}" if has_peer else "– | –"
    return (
        f"| {width} | {part} | {row.bits_per_element:.2f} "
        f"| {row.kl:.5f} ± {row.kl_error:.5f} | {same} |"
    )


def interpolated(points: Sequence[tuple[float, float]], bits: float) -> float | None:
    """Return the KL of codes alone at some bits, log-linear between the neighbours.

    Args:
        points: Bits and KL, ascending.
        bits: Where to look.

    Returns:
        None outside of the points.
    """
    for (low, low_kl), (high, high_kl) in pairwise(points):
        if low <= bits <= high:
            part = (bits - low) / (high - low) if high > low else 0.0
            return math.exp((1 - part) * math.log(low_kl) + part * math.log(high_kl))
    return None


def _config(base: str, key_bits: int, value_bits: int, part: str = CODES) -> dict[str, int]:
    return variant(base, key_bits, value_bits, part).model_dump()


def _key(config: dict[str, int] | None) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((config or {}).items()))


def _greedy(found: Sequence[GreedyRow]) -> Iterator[str]:
    newest_rows = {(row.model, row.text, row.candidate): row for row in found}
    if not newest_rows:
        return
    yield "### Greedy decoding"
    yield ""
    yield "| model | text | cache | tokens before the first that differs | identical |"
    yield "|---|---|---|---|---|"
    for row in newest_rows.values():
        yield (
            f"| {row.model} | {row.text} | {row.candidate} "
            f"| {row.agreement:.1f} ± {row.agreement_error:.1f} of {row.new_tokens} "
            f"| {row.identical} of {row.prompts} |"
        )
    yield ""


def _passkeys(found: Sequence[PasskeyRow]) -> Iterator[str]:
    newest_rows = {(row.model, row.context, row.candidate, row.depth): row for row in found}
    if not newest_rows:
        return
    depths = sorted({row.depth for row in newest_rows.values()})
    places = sorted(dict.fromkeys(place[:3] for place in newest_rows), key=lambda place: place[:2])
    yield "### Passkey"
    yield ""
    yield "What the model answers where the number stands at a depth of the prompt; ✓ is right."
    yield ""
    yield f"| model | tokens | cache | {' | '.join(f'{depth:.0%}' for depth in depths)} |"
    yield "|---|---|---|" + "---|" * len(depths)
    for place in places:
        answers = [newest_rows.get((*place, depth)) for depth in depths]
        model, context, candidate = place
        yield f"| {model} | {context:,} | {candidate} | {' | '.join(map(_answer, answers))} |"
    yield ""


def _answer(row: PasskeyRow | None) -> str:
    if row is None:
        return "–"
    return "✓" if row.is_right else f"✗ `{' '.join(row.answer.split())}`"


def _pictures() -> Iterator[str]:
    for file in sorted(PICTURES.glob("*.svg")):
        yield f"![{file.stem.replace('_', ' against ')}]({PICTURES.name}/{file.name})"
        yield ""


def draw() -> None:
    """Draw the pictures; of peers those with the largest buffer, which are at their best."""
    lines = [
        row
        for row in rows()
        if (row.candidate in OURS if row.kind == GEAR else row.buffer == max(BUFFERS))
    ]
    layers = _recorded(LayerRow)
    if lines or layers:
        plot.draw(lines, layers, PICTURES)


def page() -> str:
    """Return the page as it should be."""
    return filled(PAGE.read_text(), numbers(), begin=BEGIN)


def write() -> None:
    """Draw the pictures and write the page."""
    draw()
    PAGE.write_text(page())


def main() -> int:
    """Write the page, or with `--check` say whether it is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on drift")
    if not parser.parse_args().check:
        write()
        return 0
    if PAGE.read_text() != page():
        print(f"{PAGE} is stale: run `python -m benchmarks.quality_report`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
