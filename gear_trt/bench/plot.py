"""Pictures of recorded rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gear_trt.bench.grid import KILO
from gear_trt.bench.records import AnyRow, ModelRow, OperatorRow
from gear_trt.errors import ErrorCode, GearError

PANEL_INCHES = (7.6, 4.2)
MILLI = 1e3
LOSSLESS_ERROR = 1e-9
"""NMSE up to which a cache is called lossless."""
REPRODUCIBLE: dict[Any, Any] = {"svg.hashsalt": "gear"}
"""Makes the same rows the same file, with the date left out."""
MARKERS = {"gear": "o", "onnxruntime": "s", "llama.cpp": "^"}
LINES = {"gear": "-", "onnxruntime": "--", "llama.cpp": ":"}
COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b",
    "#7f7f7f", "#bcbd22",
)  # fmt: skip
"""Told apart by colour-blind readers; line styles tell the engines apart as well."""

_AnyRow = TypeVar("_AnyRow", OperatorRow, ModelRow)
_Place = Callable[[_AnyRow], Hashable]


def draw(rows: Sequence[AnyRow], folder: Path) -> list[Path]:
    """Write an SVG file for every picture that the rows suffice for.

    Args:
        rows: Rows of one or several runs; of rows of the same place the last one counts.
        folder: Where to write; made where it is missing.

    Returns:
        The files written.

    Raises:
        GearError: `BAD_REQUEST` where there is nothing to draw.
        OSError: A file cannot be written.
    """
    newest = list({row.place: row for row in rows}.values())
    operator = [row for row in newest if isinstance(row, OperatorRow)]
    model = [row for row in newest if isinstance(row, ModelRow)]
    figures = {
        "time_context": _time_against_context(operator),
        "time_batch": _time_against_batch(operator),
        "error_bytes": _error_against_bytes(operator),
        "tokens_context": _tokens_against_context(model),
    }
    return save(
        figures,
        folder,
        hint="pass files that `gear bench ops --out` or `gear bench model --out` wrote",
    )


def save(figures: Mapping[str, Figure | None], folder: Path, *, hint: str) -> list[Path]:
    """Write the figures that there are as SVG files.

    Args:
        figures: By file name; None for those that the rows do not suffice for.
        folder: Where to write; made where it is missing.
        hint: What to pass where there is none at all.

    Returns:
        The files written.

    Raises:
        GearError: `BAD_REQUEST` where there is nothing to draw.
        OSError: A file cannot be written.
    """
    if not any(figures.values()):
        raise GearError(ErrorCode.BAD_REQUEST, "there is nothing to draw", hint=hint)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with rc_context(REPRODUCIBLE):
        for name, figure in figures.items():
            if figure is not None:
                written.append(folder / f"{name}.svg")
                figure.savefig(written[-1], metadata={"Date": None})
    return written


def _time_against_context(rows: Sequence[OperatorRow]) -> Figure | None:
    panels = _panels(
        rows,
        lambda row: (row.heads, row.batch, row.new_tokens, row.threads),
        axis=lambda row: row.context,
    )
    return _line_figure(
        panels,
        title=lambda row: (
            f"{_doing(row)}, heads {row.heads}, batch {row.batch}, {_threads(row.threads)}"
        ),
        x=lambda row: row.context,
        y=lambda row: row.seconds * MILLI,
        labels=("context (tokens)", "time per call (ms)"),
        note=lambda row: row.speedup,
    )


def _time_against_batch(rows: Sequence[OperatorRow]) -> Figure | None:
    panels = _panels(
        rows,
        lambda row: (row.heads, row.context, row.new_tokens, row.threads),
        axis=lambda row: row.batch,
    )
    return _line_figure(
        panels,
        title=lambda row: (
            f"{_doing(row)}, heads {row.heads}, context {_count(row.context)}, "
            f"{_threads(row.threads)}"
        ),
        x=lambda row: row.batch,
        y=lambda row: row.seconds * MILLI,
        labels=("batch (sequences)", "time per call (ms)"),
        note=lambda row: row.speedup,
    )


def _tokens_against_context(rows: Sequence[ModelRow]) -> Figure | None:
    panels = _panels(rows, lambda row: (row.model, row.threads), axis=None)
    return _line_figure(
        panels,
        title=lambda row: f"{row.model}, {_threads(row.threads)}",
        x=lambda row: row.context,
        y=lambda row: row.decode_tokens_per_second,
        labels=("context (tokens)", "decode (tokens/s)"),
        note=lambda row: row.speedup,
        is_log_y=False,
    )


def _error_against_bytes(rows: Sequence[OperatorRow]) -> Figure | None:
    """One point per candidate and geometry, at its longest decode context."""
    lossy = [
        row
        for row in rows
        if row.new_tokens == 1 and row.host == "onnxruntime" and row.nmse > LOSSLESS_ERROR
    ]
    panels = _panels(lossy, lambda row: row.heads, axis=None)
    if not panels:
        return None
    figure, axes = _figure(len(panels))
    for panel, axis in zip(panels, axes, strict=True):
        longest = max(row.context for row in panel)
        shown = {row.candidate: row for row in panel if row.context == longest}
        for color, row in zip(_cycle(COLORS), shown.values(), strict=False):
            label = row.candidate if row.engine == "gear" else f"{row.candidate} ({row.cache})"
            label += f"  {row.nmse:.1e}"
            marker = MARKERS[row.engine]
            axis.plot(row.bytes_per_token, row.nmse, marker, color=color, label=label)
        axis.set(xscale="log", yscale="log")
        axis.set_title(f"heads {panel[0].heads}, context {_count(longest)}", fontsize=10)
        axis.set_xlabel("bytes per token in the cache (K and V, all KV heads)")
        axis.set_ylabel("NMSE of the output to exact attention")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        _add_legend(axis, "NMSE; lossless caches left out")
    return figure


def _panels(
    rows: Iterable[_AnyRow], key: _Place[_AnyRow], *, axis: _Place[_AnyRow] | None
) -> list[list[_AnyRow]]:
    """Group rows; with an axis, only groups that have several places on it make a line."""
    groups: dict[Hashable, list[_AnyRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return [
        group for group in groups.values() if axis is None or len({axis(row) for row in group}) > 1
    ]


def _line_figure(
    panels: list[list[_AnyRow]],
    *,
    title: Callable[[_AnyRow], str],
    x: Callable[[_AnyRow], float],
    y: Callable[[_AnyRow], float],
    labels: tuple[str, str],
    note: Callable[[_AnyRow], float | None],
    is_log_y: bool = True,
) -> Figure | None:
    if not panels:
        return None
    figure, axes = _figure(len(panels))
    for panel, axis in zip(panels, axes, strict=True):
        lines: dict[str, list[_AnyRow]] = {}
        for row in panel:
            lines.setdefault(row.candidate, []).append(row)
        for color, (name, line) in zip(_cycle(COLORS), lines.items(), strict=False):
            line.sort(key=x)
            engine = line[0].engine
            last = note(line[-1])
            axis.plot(
                [x(row) for row in line],
                [y(row) for row in line],
                LINES[engine] + MARKERS[engine],
                color=color,
                label=name if last is None else f"{name}  {last:.1f}×",
                markersize=4,
            )
        if is_log_y:
            _draw_proportion(axis, min(lines.values(), key=lambda line: y(line[-1])), x, y)
        _finish(axis, panel, x, labels, is_log_y=is_log_y)
        axis.set_title(title(panel[0]), fontsize=10)
    return figure


def _finish(
    axis: Axes,
    panel: Sequence[_AnyRow],
    x: Callable[[_AnyRow], float],
    labels: tuple[str, str],
    *,
    is_log_y: bool,
) -> None:
    axis.set_xscale("log", base=2)
    if is_log_y:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_ylim(bottom=0)
    places = sorted({x(row) for row in panel})
    axis.set_xticks(places, [_count(place) for place in places])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.grid(alpha=0.3)
    baseline = panel[0].baseline
    _add_legend(axis, f"times faster than {baseline}\nat the right end" if baseline else None)


def _draw_proportion(
    axis: Axes,
    line: Sequence[_AnyRow],
    x: Callable[[_AnyRow], float],
    y: Callable[[_AnyRow], float],
) -> None:
    """Show where a line would be whose time is proportional to the axis."""
    first = line[0]
    ends = [x(first), x(line[-1])]
    axis.plot(
        ends,
        [y(first) * end / x(first) for end in ends],
        color="0.7",
        linewidth=4,
        zorder=0,
        label="proportional",
    )


def _add_legend(axis: Axes, heading: str | None) -> None:
    axis.legend(
        title=heading,
        fontsize=8,
        title_fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        borderaxespad=0,
        frameon=False,
    )


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


def _cycle(items: Sequence[str]) -> Iterable[str]:
    while True:
        yield from items


def _doing(row: OperatorRow) -> str:
    return "decode" if row.new_tokens == 1 else f"prefill of {row.new_tokens}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _count(value: Any) -> str:  # noqa: ANN401 - numbers of any type
    return f"{value // KILO:.0f}k" if value >= KILO and value % KILO == 0 else f"{value:g}"
