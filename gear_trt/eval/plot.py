"""Pictures of recorded rows: quality against bytes, and the error of each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gear_trt.bench.plot import COLORS, save
from gear_trt.eval.candidate import GEAR, UNSCALED_SUFFIX
from gear_trt.eval.layers import LayerRow
from gear_trt.eval.records import EvalRow, newest

PANEL_INCHES = (8.0, 5.0)
MARKERS = "osD^vP*X"
LOSSLESS_KL = 1e-5
"""Up to here a cache is called lossless and left out of pictures with a logarithmic axis."""

_Row = TypeVar("_Row", EvalRow, LayerRow)


def draw(rows: Sequence[EvalRow], layer_rows: Sequence[LayerRow], folder: Path) -> list[Path]:
    """Write an SVG file for every picture that the rows suffice for.

    Args:
        rows: Of one or several runs; of rows of the same place the last one counts.
        layer_rows: Likewise.
        folder: Where to write; made where it is missing.

    Returns:
        The files written.

    Raises:
        GearError: `BAD_REQUEST` where there is nothing to draw.
        OSError: A file cannot be written.
    """
    lossy = [row for row in newest(rows) if row.kl > LOSSLESS_KL]
    layers = list(
        {(row.model, row.text, row.candidate, row.layer): row for row in layer_rows}.values()
    )
    figures: dict[str, Figure | None] = {
        "kl_bytes": _against_bytes(
            lossy, lambda row: row.kl, lambda row: row.kl_error, "KL divergence (nats)"
        ),
        "perplexity_bytes": _against_bytes(
            [row for row in lossy if row.perplexity_ratio > 1],
            lambda row: 100 * (row.perplexity_ratio - 1),
            lambda row: 100 * row.perplexity_ratio_error,
            "perplexity above uncompressed (%)",
        ),
        "layers": _by_layer(layers),
    }
    return save(
        figures,
        folder,
        hint="pass files that `gear eval text --out` or `gear eval layers --out` wrote",
    )


def _against_bytes(
    rows: Sequence[EvalRow],
    value: Callable[[EvalRow], float],
    error: Callable[[EvalRow], float],
    label: str,
) -> Figure | None:
    panels = _grouped(rows, lambda row: (row.model, row.text))
    if not panels:
        return None
    figure, axes = _figure(len(panels))
    series = list(dict.fromkeys(map(_series, rows)))
    for panel, axis in zip(panels, axes, strict=True):
        usual = Counter(row.buffer for row in panel).most_common(1)[0][0]
        for index, name in enumerate(series):
            shown = sorted(
                (row for row in panel if _series(row) == name), key=lambda row: row.bytes_per_token
            )
            if not shown:
                continue
            axis.errorbar(
                [row.bytes_per_token for row in shown],
                [value(row) for row in shown],
                [min(error(row), 0.9 * value(row)) for row in shown],  # a log axis has no zero
                fmt=MARKERS[index % len(MARKERS)],
                color=COLORS[index % len(COLORS)],
                label=name,
                markersize=5,
                elinewidth=0.8,
            )
            for row in shown:
                is_special = row.buffer != usual
                point = f"{row.candidate} (buffer {row.buffer})" if is_special else row.candidate
                _name(axis, point, row.bytes_per_token, value(row))
        axis.set(xscale="log", yscale="log")
        axis.set_title(f"{panel[0].model}, {panel[0].text}, {panel[0].tokens} tokens", fontsize=10)
        axis.set_xlabel(f"cache bytes per token (FP16: {panel[0].fp16_bytes_per_token:,})")
        axis.set_ylabel(label)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    return figure


def _series(row: EvalRow) -> str:
    if row.kind != GEAR:
        return row.kind
    is_unscaled = row.candidate.endswith(UNSCALED_SUFFIX)
    return f"gear (ours){UNSCALED_SUFFIX if is_unscaled else ''}"


def _by_layer(rows: Sequence[LayerRow]) -> Figure | None:
    panels = _grouped(rows, lambda row: (row.model, row.text))
    if not panels:
        return None
    errors: dict[str, Callable[[LayerRow], float]] = {
        "attention output": lambda row: row.output_error,
        "keys": lambda row: row.key_error,
        "values": lambda row: row.value_error,
    }
    figure, axes = _figure(len(panels) * len(errors))
    for panel, first in zip(panels, range(0, len(axes), len(errors)), strict=True):
        for (what, error), axis in zip(errors.items(), axes[first:], strict=False):
            for index, line in enumerate(_grouped(panel, lambda row: row.candidate)):
                axis.plot(
                    [row.layer for row in line],
                    [error(row) for row in line],
                    marker=MARKERS[index % len(MARKERS)],
                    color=COLORS[index % len(COLORS)],
                    label=line[0].candidate,
                    markersize=3,
                    linewidth=1,
                )
            axis.set_yscale("log")
            axis.set_title(f"{panel[0].model}: {what}", fontsize=10)
            axis.set_xlabel("layer")
            axis.set_ylabel("normalized mean squared error")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7, frameon=False)
    return figure


def _name(axis: Axes, name: str, x: float, y: float) -> None:
    axis.annotate(name, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=6)


def _grouped(rows: Iterable[_Row], key: Callable[[_Row], Hashable]) -> list[list[_Row]]:
    groups: dict[Hashable, list[_Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    columns = min(panels, 2)
    lines = -(-panels // columns)
    figure = Figure(
        figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * lines), layout="constrained"
    )
    axes: list[Axes] = list(figure.subplots(lines, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.remove()
    return figure, axes[:panels]
