"""From a model to an engine folder: source → normalize → find → route → attach → verify → write."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.build.folder import check_output, staged_folder
from gear_trt.export.build.measure_keys import measure_key_scales
from gear_trt.export.build.onnxruntime import (
    file_sizes,
    layer_facts,
    manifest_of,
    rewrite_graph,
    write_engine,
)
from gear_trt.export.build.tensorrt import build_engine, check_tensorrt
from gear_trt.export.build.tensorrt_plan import TensorRTOptions
from gear_trt.export.model_facts import longest_context, model_facts
from gear_trt.export.passes.attach import attach, token_input
from gear_trt.export.passes.branches import resolve_branches
from gear_trt.export.passes.find_kv import find_kv, no_kv_cache
from gear_trt.export.passes.interface import SharedInputs
from gear_trt.export.passes.normalize import normalize
from gear_trt.export.passes.positions import Positions
from gear_trt.export.passes.route_kv import route_kv
from gear_trt.export.passes.scale_keys import scale_keys
from gear_trt.export.passes.simplify import simplify
from gear_trt.export.passes.sites import KvSite, NearMiss, SearchContext
from gear_trt.export.passes.verify import verify
from gear_trt.export.passes.weights import WeightGuard
from gear_trt.export.report import CacheCost, ExportReport, describe, package_versions
from gear_trt.export.source.companions import check_tokenizer, copy_tokenizer
from gear_trt.export.source.source import Dtype, Progress, open_source, silent
from gear_trt.runtime.manifest import LayerFacts, Manifest, ModelFacts, TuningFacts
from gear_trt.spec import CompressionConfig, ModelConfig
from gear_trt.tune.target import TuningTarget

log = logging.getLogger(__name__)

UNKNOWN_CONTEXT = 4096
"""Tokens up to which masks are looked at where nothing says how long the context is."""


def export_model(
    source: str | Path,
    output: str | Path,
    *,
    config: CompressionConfig | ModelConfig,
    max_context: int | None = None,
    tokenizer: str | Path | None = None,
    dtype: Dtype | None = None,
    scale_keys: bool = True,
    tuning: TuningTarget | None = None,
    force: bool = False,
    tensorrt: TensorRTOptions | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Export a model to an engine folder.

    Args:
        source: An `.onnx` file with a KV cache, a Hugging Face folder, or a GGUF file.
        output: The engine folder; it appears only when it is complete.
        config: How the caches are compressed: all alike, or layer by layer.
        max_context: Longest sequence, tokens; None means what the model's files say.
        tokenizer: Folder of the tokenizer; None means beside the model.
        dtype: Of a checkpoint's weights and activations: float16 or bfloat16 for GPUs. None keeps
            float16 and makes all else float32.
        scale_keys: Run the exported graph once, one layer in memory at a time, and scale the
            channels of keys so that their compression costs less
            (`gear_trt.reference.key_scales`).
        tuning: First measure the layers of a checkpoint and choose the bits, group size, rank and
            outliers of each (`gear_trt.tune`); `config`, the same for all layers, has the rest.
        force: Replace `output` where it is an engine folder.
        tensorrt: Build a TensorRT engine too; the folder is complete without it where that fails.
        progress: Told the stages.

    Returns:
        What was found and done; also in `report.json` and `report.md`.

    Raises:
        GearError: `MISSING_FILE`, `DAMAGED_MODEL`, `MISSING_DEPENDENCY`, `UNSUPPORTED_MODEL` or
            `NO_KV_CACHE` for the model, `OUTPUT_EXISTS` for the folder, `NON_FINITE_WEIGHTS`,
            `BAD_CONFIG` for a context that is too long, a layer that is not there, or a type where
            the model is an ONNX file,
            `VERIFICATION_FAILED` for a bug of ours; with `scale_keys`, those of
            `measure_key_scales`; with `tuning`, `BAD_CONFIG` for layers with configs of their own,
            and those of `open_tunable` and `tune_checkpoint`; with `tensorrt`, those of
            `add_tensorrt`.
        OSError: The disk is full, or the folder cannot be written.

    Example:
        >>> export_model("model.gguf", "out", config=CompressionConfig())  # doctest: +SKIP
    """
    source, output = Path(source), Path(output)
    check_output(output, force=force)
    if tensorrt is not None:
        check_tensorrt(tensorrt)
    if tokenizer is not None:
        check_tokenizer(Path(tokenizer))
    job = _Job(source, config, progress)
    if tuning is not None:
        job.tune(tuning, scale_keys=scale_keys)
    job.open(dtype)
    job.find(max_context)
    facts = job.rewrite(max_context)
    with staged_folder(output, force=force) as folder:
        progress(f"writing {output}")
        with job.stage("write"):
            job.write(folder, facts)
            if tokenizer is not None:
                copy_tokenizer(Path(tokenizer), folder)
        if scale_keys and job.has_scalable_keys:
            progress("measuring queries and keys")
            with job.stage("scale keys"):
                job.scale_keys(folder)
        report = job.report(facts, output, folder)
        report.write(folder)
    if tensorrt is None:
        return report
    del job  # its model would stay in memory beside the build
    gc.collect()  # nodes and values refer to each other
    return add_tensorrt(output, tensorrt, progress=progress)


def add_tensorrt(
    folder: str | Path, options: TensorRTOptions, *, progress: Progress = silent
) -> ExportReport:
    """Build the TensorRT engine of an engine folder, for instance anew for another GPU.

    Args:
        folder: As `export_model` writes it.
        options: What to build.
        progress: Told the stages.

    Returns:
        The folder's report, which now also says how the engine was built.

    Raises:
        GearError: As `build_engine`.
        OSError: The disk is full, or the folder cannot be written.

    Example:
        >>> add_tensorrt("out", TensorRTOptions(flavour="tensorrt-rtx"))  # doctest: +SKIP
    """
    folder = Path(folder)
    Manifest.read(folder)  # says what is wrong with a folder that is no engine's
    report = ExportReport.read(folder)
    build = build_engine(folder, options, progress=progress)
    done = report.model_copy(
        update={
            "output": str(folder),
            "file_bytes": file_sizes(folder),
            "seconds": {**report.seconds, "tensorrt": build.seconds},
            "tensorrt": build,
        }
    )
    done.write(folder)
    return done


def inspect_model(
    source: str | Path,
    *,
    config: CompressionConfig | ModelConfig,
    max_context: int | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Do all that `export_model` does but write; layers that cannot be routed are no error.

    Args:
        source: As for `export_model`.
        config: How the caches would be compressed: all alike, or layer by layer.
        max_context: Longest sequence, tokens; None means what the model's files say.
        progress: Told the stages.

    Returns:
        What was found: also every near miss, with its reason.

    Raises:
        GearError: As `export_model`, but for `NO_KV_CACHE`.
    """
    job = _Job(Path(source), config, progress)
    job.open()
    job.find(max_context)
    return job.report(job.rewrite(max_context) if job.routable else None)


class _Job:
    """One export, stage by stage."""

    def __init__(
        self,
        source: Path,
        config: CompressionConfig | ModelConfig,
        progress: Progress,
    ) -> None:
        self._path = source
        self._config = config if isinstance(config, ModelConfig) else ModelConfig(config)
        self._configs: tuple[CompressionConfig, ...] = ()
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._versions = package_versions()
        self._found: list[KvSite | NearMiss] = []
        self._nodes_after: int | None = None
        self._scaled = 0
        self._tuning: TuningFacts | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Take the time of a stage."""
        started = time.perf_counter()
        yield
        self._seconds[name] = round(time.perf_counter() - started, 3)

    @property
    def routable(self) -> bool:
        """Whether there are attention layers, and none that cannot be routed."""
        return bool(self._found) and len(self._sites) == len(self._found)

    @property
    def _sites(self) -> list[KvSite]:
        return [item for item in self._found if isinstance(item, KvSite)]

    def tune(self, target: TuningTarget, *, scale_keys: bool) -> None:
        """Choose the config of every layer; to be done first, while no other model is in memory.

        Raises:
            GearError: `BAD_CONFIG` for layers with configs of their own, and those of
                `open_tunable` and `tune_checkpoint`.
        """
        from gear_trt.tune.checkpoint import open_tunable, tune_checkpoint, tuning_facts

        if self._config.special:
            raise GearError(
                ErrorCode.BAD_CONFIG,
                "single layers have configs of their own, and tuning chooses those",
                hint="leave them out, or run `gear tune` and override what its file says: "
                "`gear-export --config tuned.toml --layer ...`",
            )

        def tell(stage: str, _: str, done: float) -> None:
            self._progress(f"tuning: {stage}", done)

        with self.stage("tune"):
            tuning = tune_checkpoint(
                open_tunable(self._path),
                self._config.base,
                target,
                scale_keys=scale_keys,
                progress=tell,
            )
        self._config, self._tuning = tuning.config, tuning_facts(tuning, target)

    def open(self, dtype: Dtype | None = None) -> None:
        """Read the model.

        Raises:
            GearError: As `open_source`.
        """
        with self.stage("source"):
            self._source = open_source(self._path, self._progress, dtype)
            self._weights = WeightGuard(self._source.model)
        self._nodes_before = len(self._source.model.graph)

    def find(self, max_context: int | None) -> None:
        """Look for attention layers."""
        self._progress("looking for attention layers")
        context = max_context or self._source.facts.max_context or UNKNOWN_CONTEXT
        with self.stage("find"):
            resolve_branches(self._source.model, context)
            normalize(self._source.model)
            self._found = find_kv(SearchContext(self._source.model.graph, context))
        for layer, item in enumerate(self._found):
            verdict = item.facts if isinstance(item, KvSite) else item.reason
            log.debug("layer %d, %s node %s: %s", layer, item.form, item.node.name, verdict)

    def rewrite(self, max_context: int | None) -> ModelFacts:
        """Route the layers and return the facts of the model.

        Raises:
            GearError: `NO_KV_CACHE`, and those of the passes.
        """
        if not self.routable:
            raise no_kv_cache(self._found)
        model, sites = self._source.model, self._sites
        context = longest_context(self._source.facts, sites, max_context)
        self._configs = self._config.of_layers(len(sites))
        self._progress(f"routing {len(sites)} attention layers")
        with self.stage("route"):
            self._weights.note_readers()
            input_ids, shared = token_input(model.graph), SharedInputs()
            positions = Positions(model.graph, input_ids, shared)
            states = route_kv(model.graph, sites, self._configs, shared=shared, positions=positions)
            attach(
                model,
                states,
                shared,
                sites=sites,
                input_ids=input_ids,
                positions=positions,
                max_context=context,
            )
            simplify(model)
            verify(model, len(states), self._weights)
        self._nodes_after = len(model.graph)
        return model_facts(self._source.facts, model.graph, context)

    def write(self, folder: Path, facts: ModelFacts) -> None:
        """Write the engine into an empty folder.

        Raises:
            GearError: `NON_FINITE_WEIGHTS`, `VERIFICATION_FAILED`.
        """
        self._weights.check_finite(self._source.model)
        write_engine(
            folder,
            self._source.model,
            manifest_of(facts, self._layers(), self._versions, self._tuning),
            write_companions=self._source.write_companions,
            weights=self._weights,
            progress=self._progress,
        )

    @property
    def has_scalable_keys(self) -> bool:
        """Whether scales of keys change anything in some layer."""
        return any(config.scales_keys for config in self._configs)

    def scale_keys(self, folder: Path) -> None:
        """Scale the keys of the engine that `write` wrote.

        Raises:
            GearError: As `measure_key_scales`.
        """
        manifest = Manifest.read(folder)
        try:
            scales = measure_key_scales(folder, manifest)
        except GearError as error:
            raise GearError(
                error.code,
                f"the model cannot be run to measure its keys: {error.message}",
                hint="pass --no-scale-keys, which exports without running the model",
                detail=error.detail,
            ) from error
        scale_keys(self._source.model, scales)
        rewrite_graph(folder, self._source.model)
        self._scaled = sum(item is not None for item in scales)
        manifest.model_copy(update={"has_key_scales": self._scaled > 0}).write(folder)

    def report(
        self, facts: ModelFacts | None, output: Path | None = None, folder: Path | None = None
    ) -> ExportReport:
        """Describe what was done.

        Args:
            facts: Of the model, where it could be routed.
            output: The engine folder to be.
            folder: Where it is being written.
        """
        return ExportReport(
            source=str(self._path),
            output=None if output is None else str(output),
            config=self._config.base,
            model=facts,
            cache=None if facts is None else CacheCost.of(self._layers()),
            sites=describe(self._found, self._configs),
            nodes_before=self._nodes_before,
            nodes_after=self._nodes_after,
            scaled_layers=self._scaled,
            tuning=self._tuning,
            file_bytes={} if folder is None else file_sizes(folder),
            seconds=self._seconds,
            versions=self._versions,
        )

    def _layers(self) -> tuple[LayerFacts, ...]:
        pairs = zip(self._sites, self._configs, strict=True)
        return tuple(layer_facts(site, config) for site, config in pairs)
