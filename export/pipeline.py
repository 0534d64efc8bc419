"""From a model to an engine folder: source → normalize → find → route → attach → verify → write."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.build.folder import check_output, staged_folder
from gear_trt.export.build.onnxruntime import file_sizes, manifest_of, write_engine
from gear_trt.export.passes.attach import attach, token_input
from gear_trt.export.passes.find_kv import find_kv
from gear_trt.export.passes.interface import SharedInputs
from gear_trt.export.passes.normalize import normalize
from gear_trt.export.passes.positions import Positions
from gear_trt.export.passes.route_kv import route_kv
from gear_trt.export.passes.simplify import simplify
from gear_trt.export.passes.sites import KvSite, NearMiss, SearchContext
from gear_trt.export.passes.verify import verify
from gear_trt.export.report import CacheCost, ExportReport, describe, package_versions
from gear_trt.export.source.companions import check_tokenizer, copy_tokenizer
from gear_trt.export.source.facts import SourceFacts
from gear_trt.export.source.source import Progress, Source, open_source
from gear_trt.runtime.manifest import ModelFacts
from gear_trt.spec import CompressionConfig

UNKNOWN_CONTEXT = 4096
"""Tokens up to which masks are looked at where nothing says how long the context is."""


def export_model(
    source: str | Path,
    output: str | Path,
    *,
    config: CompressionConfig,
    max_context: int | None = None,
    tokenizer: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda stage: None,
) -> ExportReport:
    """Export a model to an engine folder.

    Args:
        source: An `.onnx` file with a KV cache, a Hugging Face folder, or a GGUF file.
        output: The engine folder; it appears only when it is complete.
        config: How the caches are compressed.
        max_context: Longest sequence, tokens; None means what the model's files say.
        tokenizer: Folder of the tokenizer; None means beside the model.
        force: Replace `output` where it is an engine folder.
        progress: Told the stages.

    Returns:
        What was found and done; also in `report.json`.

    Raises:
        GearError: See `docs`; every cause has its code.
        OSError: The disk is full, or the folder cannot be written.

    Example:
        >>> export_model("model.gguf", "out", config=CompressionConfig())  # doctest: +SKIP
    """
    source, output = Path(source), Path(output)
    check_output(output, force=force)
    if tokenizer is not None:
        check_tokenizer(Path(tokenizer))
    clock = _Clock()
    with clock.stage("source"):
        opened = open_source(source, progress)
    nodes_before = _count_nodes(opened.model)
    with clock.stage("find"):
        progress("looking for attention layers")
        found = _find(opened, max_context)
    sites = _require_routable(found)
    context = _max_context(opened.facts, sites, max_context)
    with clock.stage("route"):
        progress(f"routing {len(sites)} attention layers")
        _rewrite(opened.model, sites, config)
    facts = _model_facts(opened, context)
    versions = package_versions()
    with staged_folder(output, force=force) as folder:
        progress(f"writing {output}")
        with clock.stage("write"):
            manifest = manifest_of(facts, sites, config, versions)
            write_engine(folder, opened.model, manifest, opened.write_companions)
            if tokenizer is not None:
                copy_tokenizer(Path(tokenizer), folder)
        report = ExportReport(
            source=str(source),
            output=str(output),
            config=config,
            model=facts,
            cache=CacheCost.of(manifest.layers),
            sites=describe(sites),
            nodes_before=nodes_before,
            nodes_after=_count_nodes(opened.model),
            file_bytes=file_sizes(folder),
            seconds=clock.seconds,
            versions=versions,
        )
        report.write(folder)
    return report


def inspect_model(
    source: str | Path,
    *,
    config: CompressionConfig,
    max_context: int | None = None,
    progress: Progress = lambda stage: None,
) -> ExportReport:
    """Find the attention layers of a model and say which can be routed; writes nothing.

    Args:
        source: As for `export_model`.
        config: How the caches would be compressed.
        max_context: Longest sequence, tokens; None means what the model's files say.
        progress: Told the stages.

    Raises:
        GearError: The model cannot be read.
    """
    clock = _Clock()
    with clock.stage("source"):
        opened = open_source(Path(source), progress)
    nodes_before = _count_nodes(opened.model)
    with clock.stage("find"):
        found = _find(opened, max_context)
    return ExportReport(
        source=str(source),
        config=config,
        sites=describe(found),
        nodes_before=nodes_before,
        seconds=clock.seconds,
        versions=package_versions(),
    )


class _Clock:
    """Seconds of every stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)


def _find(source: Source, max_context: int | None) -> list[KvSite | NearMiss]:
    normalize(source.model)
    context = max_context or source.facts.max_context or UNKNOWN_CONTEXT
    return find_kv(SearchContext(source.model.graph, context))


def _require_routable(found: Sequence[KvSite | NearMiss]) -> list[KvSite]:
    sites = [item for item in found if isinstance(item, KvSite)]
    if found and len(sites) == len(found):
        return sites
    closest = [
        f"closest: layer {layer}, node {item.node.name}: check failed: {item.reason}"
        for layer, item in enumerate(found)
        if isinstance(item, NearMiss)
    ]
    raise GearError(
        ErrorCode.NO_KV_CACHE,
        f"{len(sites)} of {len(found)} attention layers can be routed"
        if found
        else "the model has no attention layer that gear_trt knows",
        detail="\n".join(closest[:3]) or None,
        hint="export the model with a KV cache (inputs past_key_values.*, outputs present.*) and "
        "without control flow, or pass its Hugging Face folder; --dry-run shows every layer",
    )


def _rewrite(model: ir.Model, sites: Sequence[KvSite], config: CompressionConfig) -> None:
    input_ids, shared = token_input(model.graph), SharedInputs()
    positions = Positions(model.graph, input_ids, shared)
    states = route_kv(model.graph, sites, config, shared=shared, positions=positions)
    attach(model, states, shared, input_ids=input_ids, positions=positions)
    simplify(model)
    verify(model, len(states))


def _model_facts(routed: Source, max_context: int) -> ModelFacts:
    facts = routed.facts
    eos = facts.eos_token_ids
    pad = facts.pad_token_id if facts.pad_token_id is not None else eos[0] if eos else 0
    return ModelFacts(
        source=facts.name,
        architecture=facts.architecture,
        vocab_size=_vocab_size(routed),
        max_context=max_context,
        eos_token_ids=eos,
        pad_token_id=pad,
    )


def _vocab_size(routed: Source) -> int:
    """The width of the logits, which are the first output of every routed graph."""
    shape = routed.model.graph.outputs[0].shape
    width = shape[-1] if shape is not None else None
    vocab_size = width if isinstance(width, int) else routed.facts.vocab_size
    if vocab_size is None:
        raise _unknown("the size of the vocabulary", "put the model's config.json beside it")
    return vocab_size


def _max_context(facts: SourceFacts, sites: Sequence[KvSite], max_context: int | None) -> int:
    """The user's choice, what the files say, or where the rotary tables end."""
    tables = [site.rotary.cos_cache.shape for site in sites if site.rotary is not None]
    rows = [shape[0] for shape in tables if shape is not None]
    longest = min((row for row in rows if isinstance(row, int)), default=None)
    chosen = max_context or facts.max_context or longest
    if chosen is None:
        raise _unknown(
            "the longest context of the model",
            "pass --max-context N, or put the model's config.json beside it",
        )
    if longest is not None and chosen > longest:
        if max_context is None:
            return longest
        raise GearError(
            ErrorCode.BAD_CONFIG,
            f"a context of {chosen} tokens is longer than the model's rotary tables: {longest}",
            hint=f"pass --max-context {longest} or less",
        )
    return chosen


def _unknown(what: str, hint: str) -> GearError:
    return GearError(ErrorCode.MISSING_FILE, f"{what} is not known", hint=hint)


def _count_nodes(model: ir.Model) -> int:
    return len(model.graph)
