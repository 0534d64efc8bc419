"""Proof that no rewrite changes a weight: checksums before and after, and who reads what."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.data_file import CHUNK_BYTES, read_chunks

_WORKERS = 4
_INFINITY = {
    ir.DataType.BFLOAT16: 0x7F80,
    ir.DataType.FLOAT16: 0x7C00,
    ir.DataType.FLOAT: 0x7F800000,
    ir.DataType.DOUBLE: 0x7FF0000000000000,
}
"""The lowest of the bit patterns, without sign, that are no finite number."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Fingerprint:
    """What identifies the content of a weight.

    Attributes:
        dtype: Type of its elements.
        shape: Its axes.
        checksum: CRC-32 of its bytes as ONNX stores them.
        is_finite: Whether no element is NaN or infinite.
    """

    dtype: ir.DataType
    shape: tuple[int, ...]
    checksum: int
    is_finite: bool


class WeightGuard:
    """Remembers a model's weights before it is rewritten.

    Weights in memory are looked at now. Those in files stay there, and the files do not change, so
    they are read when the written model is checked: a dry run reads none of them.

    Args:
        model: The model, as it was read.
    """

    def __init__(self, model: ir.Model) -> None:
        self._tensors = {
            value: value.const_value
            for graph in model.graphs()
            for value in graph.initializers.values()
            if value.const_value is not None
        }
        in_memory = {
            value: tensor
            for value, tensor in self._tensors.items()
            if not isinstance(tensor, ir.ExternalTensor)
        }
        self._fingerprints = _fingerprints(in_memory)
        self._uses: list[tuple[ir.Value, ir.Node, int]] = []

    def note_readers(self) -> None:
        """Remember which node reads which weight, before layers are routed."""
        self._uses = [(value, use.node, use.idx) for value in self._tensors for use in value.uses()]

    def reader_faults(self) -> Iterator[str]:
        """Yield the nodes that were left in the graph and read something else than before."""
        for value, node, index in self._uses:
            if node.graph is None:
                continue
            now = node.inputs[index]
            if now is not value and not self._is_equal(now, value):
                name = None if now is None else now.name
                yield f"node {node.name} reads {name} in place of weight {value.name}"
            elif now is value and not value.is_initializer():
                yield f"weight {value.name} was removed, and node {node.name} still reads it"

    def check_finite(self, model: ir.Model) -> None:
        """Refuse a model that is damaged, before it is written.

        Raises:
            GearError: `NON_FINITE_WEIGHTS`.
            OSError: A data file cannot be read.
        """
        left = self._survivors(model)
        self._read({value: self._tensors[value] for value in left})
        for value in left:
            # A scalar -inf is what masks and maxima start from, not a weight.
            if not self._fingerprints[value].is_finite and self._tensors[value].size > 1:
                raise GearError(
                    ErrorCode.NON_FINITE_WEIGHTS,
                    f"weight {value.name} has NaN or infinite elements",
                    hint="the model is damaged, or overflowed when it was converted: get it again",
                )

    def content_faults(self, model: ir.Model, path: Path) -> Iterator[str]:
        """Read a written model back and yield the weights that are not what they were.

        Args:
            model: The model as it was rewritten.
            path: The file that it was written to.
        """
        written = {
            str(value.name): value.const_value
            for graph in ir.load(path).graphs()
            for value in graph.initializers.values()
            if value.const_value is not None
        }
        left = self._survivors(model)
        self._read({value: self._tensors[value] for value in left})
        names = {value: str(value.name) for value in left}
        now = _fingerprints({name: written[name] for name in names.values() if name in written})
        for value, name in names.items():
            if name not in now:
                yield f"weight {name} was not written"
            elif now[name] != self._fingerprints[value]:
                yield f"weight {name} has changed"

    def _survivors(self, model: ir.Model) -> list[ir.Value]:
        left = {value for graph in model.graphs() for value in graph.initializers.values()}
        return [value for value in self._tensors if value in left]

    def _read(self, tensors: Mapping[ir.Value, ir.TensorProtocol]) -> None:
        new = {value: item for value, item in tensors.items() if value not in self._fingerprints}
        self._fingerprints |= _fingerprints(new)

    def _is_equal(self, now: ir.Value | None, value: ir.Value) -> bool:
        """Whether two weights have one content: a pass may join them."""
        if now is None or now not in self._tensors:
            return False
        self._read({item: self._tensors[item] for item in (now, value)})
        return self._fingerprints[now] == self._fingerprints[value]


def fingerprint(tensor: ir.TensorProtocol) -> Fingerprint:
    """Read a tensor once, as a stream where it lies in a file."""
    checksum, is_finite = 0, True
    for chunk in _chunks(tensor):
        checksum = zlib.crc32(chunk, checksum)
        is_finite = is_finite and _is_finite(chunk, tensor.dtype)
    shape = tuple(int(size) for size in tensor.shape.numpy())
    return Fingerprint(tensor.dtype, shape, checksum, is_finite)


def _is_finite(chunk: bytes | memoryview, dtype: ir.DataType) -> bool:
    """Look at bit patterns: four times as fast as at numbers."""
    if dtype not in _INFINITY or not len(chunk):
        return True
    bits = np.frombuffer(chunk, f"uint{dtype.bitwidth}")
    without_sign = (1 << (dtype.bitwidth - 1)) - 1
    return int((bits & without_sign).max()) < _INFINITY[dtype]


def _fingerprints(tensors: Mapping[Key, ir.TensorProtocol]) -> dict[Key, Fingerprint]:
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
        return dict(zip(tensors, pool.map(fingerprint, tensors.values()), strict=True))


def _chunks(tensor: ir.TensorProtocol) -> Iterable[bytes | memoryview]:
    if isinstance(tensor, ir.ExternalTensor):
        return read_chunks(Path(tensor.path), tensor.offset or 0, tensor.nbytes)
    if isinstance(tensor, ir.StringTensor):
        return tensor.string_data()
    content = memoryview(_bytes(tensor))
    return (content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES))


def _bytes(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """What ONNX stores, without a copy where elements are whole bytes."""
    if tensor.dtype.bitwidth % 8:
        return tensor.tobytes()
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
