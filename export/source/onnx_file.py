"""Reading an ONNX file; its weights stay on the disk until they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from gear_trt.errors import ErrorCode, GearError, first_line
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
    except (DecodeError, ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, first_line(error)) from error
    if not model.graph.outputs or not len(model.graph):
        raise _damaged(path, "it holds no graph")
    folder = path.absolute().parent
    for graph in model.graphs():
        _check_text(path, graph)
    for tensor in _weights(model):
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(path, tensor)
        else:
            _check_inline(path, tensor)

    def write_companions(target: Path) -> None:
        copy_tokenizer(folder, target)
        copy_generation_config(folder, target)

    return Source(model, read_facts(path.name, folder), write_companions)


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _check_text(path: Path, graph: ir.Graph) -> None:
    """Protobuf leaves what is no UTF-8 as bytes."""
    for node in graph:
        for text in (node.name, node.op_type, node.domain):
            if isinstance(text, bytes):
                raise _damaged(path, f"a node is called {text[:40]!r}, which is no text")


def _check_inline(path: Path, tensor: ir.TensorProtocol) -> None:
    try:
        tensor.numpy()
    except (ValueError, TypeError, MemoryError) as error:
        raise _damaged(
            path, f"its weight {tensor.name} is no tensor: {first_line(error)}"
        ) from None


def _check_external(path: Path, tensor: ir.ExternalTensor) -> None:
    data = (path.parent / tensor.location).resolve()
    # Download caches link a model's files to where all of them lie: there they may lie together.
    homes = (path.parent.resolve(), path.resolve().parent)
    if not any(data.is_relative_to(home) for home in homes):
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
