"""The process that builds a TensorRT engine: a request on standard input, events on output.

A process of its own, because TensorRT-RTX's parser needs a loader path that is set before a process
starts, and because what TensorRT aborts on is then an error of the build and not the end of ours.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from gear_trt.bench.machine import peak_memory_bytes
from gear_trt.driver import compute_capabilities, count_gpus
from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.build.tensorrt_hooks import make_log, make_monitor
from gear_trt.export.build.tensorrt_messages import (
    Blocked,
    BuildRequest,
    Built,
    Event,
    Failed,
    Step,
)
from gear_trt.export.build.tensorrt_plan import CURRENT_GPU, Profile, TensorRTOptions, rtx_targets
from gear_trt.tensorrt import plugin
from gear_trt.tensorrt.library import Flavour, TensorRT, import_tensorrt

ALIASED_IO = "ALIASED_PLUGIN_IO_10_03"
"""Preview feature without which TensorRT-RTX refuses a plugin that declares aliases (ADR 13)."""

_PARSER_SOURCE = "ModelImporter.cpp"
"""Where the parser's own messages come from: they say which node it is, and not why."""
_MAX_REASONS = 12


def main() -> None:
    """Build, and say what comes of it, one JSON object per line."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would wait for TensorRT to return
    events = _take_standard_output()

    def tell(event: Event) -> None:
        events.write(event.model_dump_json() + "\n")
        events.flush()

    request = BuildRequest.model_validate_json(sys.stdin.read())
    try:
        tensorrt = import_tensorrt(request.options.flavour)
        with request.log.open("w") as log:
            tell(_Build(tensorrt, request, log, tell).run())
    except GearError as error:
        tell(Failed.of(error))
    except OSError as error:
        tell(Blocked.of(error))


def _take_standard_output() -> TextIO:
    """Keep standard output for events: what libraries print goes to standard error."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return events


class _Build:
    """One build."""

    def __init__(
        self, tensorrt: TensorRT, request: BuildRequest, log: TextIO, tell: Callable[[Step], None]
    ) -> None:
        self._tensorrt = tensorrt
        self._trt = tensorrt.module
        self._request = request
        self._options = request.options
        self._tell = tell
        self._log = make_log(self._trt, log)

    def run(self) -> Built:
        """Parse, build and write.

        Raises:
            GearError: `BUILD_FAILED`, `BAD_CONFIG`, `MISSING_LIBRARY`, `LAYOUT_MISMATCH`.
        """
        started = time.perf_counter()
        builder = self._made("builder", lambda: self._trt.Builder(self._log))
        plugin.load(builder.get_plugin_registry())
        network = builder.create_network(self._network_flags())
        self._parse(network)
        config = builder.create_builder_config()
        targets = self._configure(builder, config)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise self._failed("TensorRT cannot build the engine", self._log.errors)
        self._request.engine.write_bytes(memoryview(engine))
        self._keep_timings(config)
        self._inspect(engine)
        return Built(
            version=self._tensorrt.version,
            compute_capabilities=targets,
            plugin_layers=len(self._log.plugin_layers) or None,
            seconds=round(time.perf_counter() - started, 3),
            cpu_seconds=round(time.process_time(), 3),
            peak_memory_bytes=peak_memory_bytes(),
        )

    def _made(self, name: str, make: Any) -> Any:  # noqa: ANN401 - objects of an untyped module
        try:
            return make()
        except TypeError:  # what its bindings raise for the null that they got
            message = f"TensorRT cannot make a {name} on this machine"
            raise self._failed(message, self._log.errors) from None

    def _network_flags(self) -> int:
        """TensorRT 10 must be told that types are the graph's; later ones know nothing else."""
        flag = self._trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
        return 0 if flag is None else 1 << int(flag)

    def _parse(self, network: Any) -> None:  # noqa: ANN401
        parser = self._trt.OnnxParser(network, self._log)
        if parser.parse_from_file(str(self._request.model)):
            return
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        own = [line for line in self._log.errors if not line.startswith(_PARSER_SOURCE)]
        nodes = (f"node {fault.node_name()} ({fault.node_operator()})" for fault in faults)
        where = next(nodes, "the model")
        reasons = [*own, *(fault.desc() for fault in faults), *self._log.errors]
        raise self._failed(f"TensorRT cannot parse {where}", reasons)

    def _configure(self, builder: Any, config: Any) -> tuple[str, ...]:  # noqa: ANN401
        """Set all options; return the compute capabilities that the engine is for."""
        trt, options = self._trt, self._options
        aliased_io = trt.PreviewFeature.__members__.get(ALIASED_IO)
        if aliased_io is not None:
            config.set_preview_feature(aliased_io, True)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = make_monitor(trt, self._tell)
        for flag in _flags(options):
            config.set_flag(getattr(trt.BuilderFlag, flag))
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.builder_level is not None:
            config.builder_optimization_level = options.builder_level
        if options.embed_plugin:
            config.plugins_to_serialize = [str(self._request.plugin_library)]
        if options.timing_cache is not None:
            cache = options.timing_cache
            known = cache.read_bytes() if cache.is_file() else b""
            timings = config.create_timing_cache(known)
            if not config.set_timing_cache(timings, ignore_mismatch=False):
                raise self._failed(f"TensorRT refuses the timing cache {cache}", self._log.errors)
        for shapes in self._request.profiles:
            self._add_profile(builder, config, shapes)
        return self._target(config)

    def _add_profile(self, builder: Any, config: Any, shapes: Profile) -> None:  # noqa: ANN401
        profile = builder.create_optimization_profile()
        for name, item in shapes.items():
            profile.set_shape(name, item.smallest, item.usual, item.largest)
        if config.add_optimization_profile(profile) < 0:
            raise self._failed("TensorRT refuses the shapes of a profile", self._log.errors)

    def _target(self, config: Any) -> tuple[str, ...]:  # noqa: ANN401
        if self._options.flavour is Flavour.TENSORRT:
            return compute_capabilities()[:1]
        targets = rtx_targets(self._tensorrt, self._options.compute_capabilities)
        config.num_compute_capabilities = len(targets)
        for index, member in enumerate(targets.values()):
            if not config.set_compute_capability(member, index):
                raise self._failed(f"TensorRT-RTX refuses the target {member}", self._log.errors)
        return compute_capabilities()[:1] if CURRENT_GPU in targets else tuple(targets)

    def _keep_timings(self, config: Any) -> None:  # noqa: ANN401
        if self._options.timing_cache is not None:
            timings = config.get_timing_cache().serialize()
            self._options.timing_cache.write_bytes(memoryview(timings))

    def _inspect(self, engine: Any) -> None:  # noqa: ANN401
        """Write the inspector's JSON, where there is a GPU that runs the engine."""
        if not count_gpus():
            return
        runtime = self._made("runtime", lambda: self._trt.Runtime(self._log))
        if self._options.embed_plugin:
            runtime.engine_host_code_allowed = True
        else:
            plugin.load(runtime.get_plugin_registry())
        loaded = runtime.deserialize_cuda_engine(engine)
        if loaded is None:  # it is for other GPUs
            return
        inspector = loaded.create_engine_inspector()
        json = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        self._request.layers.write_text(json)

    def _failed(self, message: str, reasons: list[str]) -> GearError:
        lines = [line for reason in dict.fromkeys(reasons) for line in reason.splitlines()]
        return GearError(
            ErrorCode.BUILD_FAILED,
            message if not lines else f"{message}: {lines[0]}",
            hint=f"TensorRT's log is in {self._request.log}",
            detail="\n".join(lines[1:_MAX_REASONS]) or None,
        )


def _flags(options: TensorRTOptions) -> Iterator[str]:
    if options.builds_version_compatible:
        yield "VERSION_COMPATIBLE"
    if options.refit:
        yield "REFIT"
    if options.weight_streaming:
        yield "WEIGHT_STREAMING"


if __name__ == "__main__":
    main()
