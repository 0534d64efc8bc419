"""`report.md`: the report of an export for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gear_trt.export.report import ExportReport, SiteReport

_MEGA = 1e6
_LAYER_COLUMNS = (
    "layer", "form", "node", "heads", "KV heads", "head_dim", "scale", "softcap", "window",
    "config or failed check",
)  # fmt: skip


def to_markdown(report: ExportReport) -> str:
    """Write a report as Markdown: the engine, every layer, files, times, versions."""
    sections = (
        (f"# Export of {report.source}", *_facts(report)),
        ("## Attention layers", *_layers(report.sites)),
        ("## Files", *_table(("file", "MB"), _sizes(report.file_bytes))),
        ("## Time", *_table(("stage", "seconds"), report.seconds.items())),
        ("## Versions", *_table(("package", "version"), report.versions.items())),
    )
    return "\n\n".join("\n".join((title, "", *lines)) for title, *lines in sections) + "\n"


def _facts(report: ExportReport) -> Iterable[str]:
    after = "not routed" if report.nodes_after is None else f"{report.nodes_after} nodes"
    yield f"- graph: {report.nodes_before} nodes before, {after} after"
    if report.model is not None:
        model = report.model
        yield (
            f"- model: {model.architecture or 'unknown architecture'}, "
            f"{model.vocab_size:,} tokens in the vocabulary, context {model.max_context:,}"
        )
    if report.cache is not None:
        cost = report.cache
        yield (
            f"- cache: {cost.bits_per_element:.2f} bits per element, {cost.bytes_per_token:,.0f} "
            f"bytes per token (FP16: {cost.fp16_bytes_per_token:,})"
        )
    if report.tuning is not None:
        yield f"- layers are tuned {report.tuning.outcome}"
    if report.scaled_layers:
        yield f"- key channels are scaled in {report.scaled_layers} of {len(report.sites)} layers"
    if report.nodes_after is not None:
        yield "- weights: those outside of attention are, bit by bit, what they were"
    if report.tensorrt is not None:
        build = report.tensorrt
        targets = ", ".join(build.facts.compute_capabilities) or "unknown"
        yield (
            f"- {build.facts.flavour} {build.facts.version} engine for compute capability "
            f"{targets}: {build.seconds:.1f} s, {build.peak_memory_bytes / _MEGA:,.0f} MB of "
            "memory at most"
        )


def _layers(sites: Sequence[SiteReport]) -> Iterable[str]:
    return _table(_LAYER_COLUMNS, map(_layer, sites))


def _layer(site: SiteReport) -> Sequence[object]:
    place = (site.layer, site.form, site.node)
    if site.reason is not None:
        return (*place, "", "", "", "", "", "", site.reason)
    window = site.sliding_window or "all"
    heads = (site.num_heads, site.num_kv_heads, site.head_dim)
    return (*place, *heads, f"{site.scale:.6g}", site.softcap or "", window, _config(site))


def _config(site: SiteReport) -> str:
    fields = {} if site.config is None else site.config.model_dump()
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def _sizes(file_bytes: dict[str, int]) -> Iterable[tuple[str, str]]:
    return ((name, f"{size / _MEGA:,.3f}") for name, size in file_bytes.items())


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
    for row in chain([columns, ["---"] * len(columns)], rows):
        yield "| " + " | ".join(str(cell).replace("|", r"\|") for cell in row) + " |"
