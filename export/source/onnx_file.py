"""Reading an ONNX file; its weights stay on the disk until they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.source.companions import copy_generation_config, copy_tokenizer
from gear_trt.export.source.facts import read_facts
from gear_trt.export.source.source import Progress, Source


def open_onnx(path: Path, progress: Progress) -> Source:
    """Read an ONNX model and the config files beside it.

    Raises:
        GearError: `DAMAGED_MODEL`, `MISSING_FILE` for external data that is not there.
    """
    progress(f"reading {path.name}")
    try:
        model = ir.load(path)
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if not model.graph.outputs or not len(model.graph):
        raise _damaged(path, "it holds no graph")
    folder = path.resolve().parent
    for tensor in _external_tensors(model):
        _check_external(path, folder, tensor)

    def write_companions(target: Path) -> None:
        copy_tokenizer(folder, target)
        copy_generation_config(folder, target)

    return Source(model, read_facts(path.name, folder), write_companions)


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _check_external(path: Path, folder: Path, tensor: ir.ExternalTensor) -> None:
    data = (folder / tensor.location).resolve()
    if not data.is_relative_to(folder):
        raise _damaged(path, f"its weight {tensor.name} lies outside of its folder: {data}")
    if not data.is_file():
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"{data}, which {path.name} keeps its weights in, does not exist",
            hint=f"put {data.name} beside {path.name}",
        )
    end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if data.stat().st_size < end:
        raise _damaged(data, f"it ends before weight {tensor.name}, at {data.stat().st_size} bytes")


def _damaged(path: Path, reason: str) -> GearError:
    return GearError(
        ErrorCode.DAMAGED_MODEL,
        f"{path} is damaged: {reason}",
        hint="get the file again, or export it again",
    )
