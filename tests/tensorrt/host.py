"""A host of plugins that stands in for TensorRT: it loads the library and calls every method.

TensorRT's own registry makes the same objects (`test_registry.py`), but its Python bindings cannot
call most methods of plugins that are written in C++. Needs a C++ compiler, and no TensorRT.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Mapping, Sequence
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_void_p,
)
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gear_trt import c_api
from gear_trt.spec import GEAR_ATTENTION, CompressionConfig, layout_hash

ROOT = Path(__file__).parents[2]
FLOAT, HALF, INT8, INT32, BF16 = 0, 1, 2, 3, 7
"""Values of TensorRT's `DataType`."""
ACTIVATIONS = {"float32": FLOAT, "float16": HALF, "bfloat16": BF16}
DATA_TYPES = range(12)
LINEAR = 0
TENSOR_FORMATS = range(13)
"""Values of TensorRT's `TensorFormat`."""
FIELD_FLOAT32, FIELD_INT32, FIELD_CHAR, FIELD_INT64 = 1, 5, 6, 10
"""Values of TensorRT's `PluginFieldType`."""
BUILD, RUNTIME = 0, 1
"""Values of TensorRT's `TensorRTPhase`."""
ERROR, VERBOSE = 1, 4
"""Severities of TensorRT's log."""

NUM_INPUTS, NUM_OUTPUTS = len(GEAR_ATTENTION.inputs), len(GEAR_ATTENTION.outputs)
TENSORS = (*GEAR_ATTENTION.inputs, *GEAR_ATTENTION.outputs)


class Dims(Structure):
    """`nvinfer1::Dims64`."""

    _fields_ = (("rank", c_int32), ("sizes", c_int64 * 8))


class Desc(Structure):
    """`nvinfer1::PluginTensorDesc`."""

    _fields_ = (("dims", Dims), ("type", c_int32), ("format", c_int32), ("scale", c_float))


class DynamicDesc(Structure):
    """`nvinfer1::DynamicPluginTensorDesc`."""

    _fields_ = (("desc", Desc), ("min", Dims), ("max", Dims), ("opt", Dims))


class DimsExprs(Structure):
    """`nvinfer1::DimsExprs`."""

    _fields_ = (("rank", c_int32), ("sizes", c_void_p * 8))


class Field(Structure):
    """`nvinfer1::PluginField`."""

    _fields_ = (("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32))


class Fields(Structure):
    """`nvinfer1::PluginFieldCollection`."""

    _fields_ = (("count", c_int32), ("fields", POINTER(Field)))


@dataclass(frozen=True)
class Value:
    """What a field holds: `data` as TensorRT would hand it over."""

    type: int
    data: bytes
    length: int

    @classmethod
    def of(cls, value: float | str) -> Value:
        """A value as the ONNX parser hands it over."""
        if isinstance(value, str):
            return cls(FIELD_CHAR, value.encode(), len(value))
        if isinstance(value, float):
            return cls(FIELD_FLOAT32, bytes(c_float(value)), 1)
        return cls(FIELD_INT32, bytes(c_int32(value)), 1)


def attributes(
    config: CompressionConfig | None = None, *, head_dim: int = 64, **changes: Any
) -> dict[str, Any]:
    """Attributes of a node as an exported model has them."""
    made = {
        "num_heads": 8, "num_kv_heads": 2, "head_dim": head_dim, "layer": 3,
        "scale": head_dim**-0.5, "softcap": 0.0, "sliding_window": 0,
        **(config or CompressionConfig()).model_dump(),
        "layout_hash": layout_hash(), "plugin_version": "1", "plugin_namespace": "gear",
    }  # fmt: skip
    return {**made, **changes}


def dims(shape: Sequence[int]) -> Dims:
    """Sizes as TensorRT has them."""
    return Dims(len(shape), (c_int64 * 8)(*shape))


def desc(data_type: int, shape: Sequence[int], tensor_format: int = LINEAR) -> Desc:
    """A tensor at run time."""
    return Desc(dims(shape), data_type, tensor_format, -1.0)


def dynamic_desc(data_type: int, shape: Sequence[int], tensor_format: int = LINEAR) -> DynamicDesc:
    """A tensor of a profile whose largest shape is `shape`; the free axes begin at 1."""
    largest = dims(shape)
    return DynamicDesc(
        desc(data_type, shape, tensor_format), dims([1] * len(shape)), largest, largest
    )


class Plugin:
    """One plugin object; `Host.create` makes it. It is destroyed with its last reference."""

    def __init__(self, host: Host, handle: int) -> None:
        self._functions = host.functions
        self._host = host
        self._handle = handle

    def __del__(self) -> None:
        self._functions.host_destroy(self._handle)

    def clone(self) -> Plugin:
        return self._host.wrap(self._functions.host_clone(self._handle))

    def attach(self) -> Plugin:
        return self._host.wrap(self._functions.host_attach(self._handle))

    @property
    def identity(self) -> tuple[str, str, str]:
        """Name, version, namespace."""
        functions = (
            self._functions.host_name, self._functions.host_version,
            self._functions.host_namespace,
        )  # fmt: skip
        return tuple(function(self._handle).decode() for function in functions)

    @property
    def build_interface(self) -> int:
        """Major version of the build interface."""
        return self._functions.host_interface_major(self._handle)

    @property
    def num_outputs(self) -> int:
        return self._functions.host_num_outputs(self._handle)

    @property
    def metadata(self) -> str:
        return self._functions.host_metadata(self._handle).decode()

    def aliased_input(self, output: int) -> int:
        return self._functions.host_aliased_input(self._handle, output)

    def serialized(self) -> dict[str, Value]:
        return read_fields(self._functions.host_serialized(self._handle).contents)

    def output_types(self, input_types: Sequence[int]) -> list[int] | None:
        types = (c_int32 * len(input_types))(*input_types)
        out = (c_int32 * NUM_OUTPUTS)()
        status = self._functions.host_output_types(
            self._handle, out, NUM_OUTPUTS, types, len(input_types)
        )
        return None if status else list(out)

    def output_shapes(self, shapes: Sequence[Sequence[int]]) -> list[list[int]] | None:
        """Sizes are names of expressions: any number but 0."""
        exprs = (DimsExprs * len(shapes))(
            *(DimsExprs(len(shape), (c_void_p * 8)(*shape)) for shape in shapes)
        )
        out = (DimsExprs * NUM_OUTPUTS)()
        status = self._functions.host_output_shapes(
            self._handle, exprs, len(shapes), out, NUM_OUTPUTS
        )
        return None if status else [list(shape.sizes[: shape.rank]) for shape in out]

    def supports(self, position: int, descs: Sequence[DynamicDesc]) -> bool:
        array = (DynamicDesc * len(descs))(*descs)
        return bool(
            self._functions.host_supports(self._handle, position, array, NUM_INPUTS, NUM_OUTPUTS)
        )

    def configure(self, descs: Sequence[DynamicDesc]) -> bool:
        arguments = _inputs_and_outputs(DynamicDesc, descs)
        return self._functions.host_configure(self._handle, *arguments) == 0

    def workspace(self, descs: Sequence[DynamicDesc]) -> int:
        return self._functions.host_workspace(
            self._handle, *_inputs_and_outputs(DynamicDesc, descs)
        )

    def shape_change(self, descs: Sequence[Desc]) -> bool:
        arguments = _inputs_and_outputs(Desc, descs)
        return self._functions.host_shape_change(self._handle, *arguments) == 0

    def enqueue(
        self, descs: Sequence[Desc], addresses: Sequence[int], workspace: int, stream: int
    ) -> bool:
        inputs, _, outputs, _ = _inputs_and_outputs(Desc, descs)
        return (
            self._functions.host_enqueue(
                self._handle,
                inputs,
                outputs,
                (c_void_p * NUM_INPUTS)(*addresses[:NUM_INPUTS]),
                (c_void_p * NUM_OUTPUTS)(*addresses[NUM_INPUTS:]),
                workspace,
                stream,
            )
            == 0
        )


class Host:
    """A plugin library that has been loaded.

    Args:
        library: Path of the library.
        version: Of the TensorRT that the host poses as.
    """

    def __init__(self, library: Path, version: int = 110400) -> None:
        self.functions = _functions(version)
        self._creator = self.functions.host_load(str(library).encode())
        if not self._creator:
            raise OSError(f"{library} is no plugin library")
        self._library = ctypes.CDLL(str(library))
        self._library.gear_tensorrt_status.argtypes = c_api.ERROR_TEXT

    def create(self, values: Mapping[str, Any], phase: int = BUILD) -> Plugin | None:
        """Make a plugin from attributes; None where it is refused."""
        held = {
            name: value if isinstance(value, Value) else Value.of(value)
            for name, value in values.items()
        }
        buffers = [ctypes.create_string_buffer(value.data) for value in held.values()]
        fields = (Field * len(held))(
            *(
                Field(name.encode(), ctypes.addressof(buffer), value.type, value.length)
                for (name, value), buffer in zip(held.items(), buffers, strict=True)
            )
        )
        handle = self.functions.host_create(self._creator, fields, len(held), phase)
        return self.wrap(handle) if handle else None

    def wrap(self, handle: int) -> Plugin:
        assert handle, f"no plugin was made: {self.take_log()}"
        return Plugin(self, handle)

    def field_names(self) -> dict[str, Value]:
        return read_fields(self.functions.host_field_names(self._creator).contents)

    def take_log(self, severity: int = ERROR) -> list[str]:
        """Messages since the last time that are this severe or more."""
        lines = self.functions.host_take_log().decode().splitlines()
        return [line[2:] for line in lines if int(line[0]) <= severity]

    def raise_errors(self) -> None:
        """What the kernels noted, as `gear_trt.tensorrt.raise_errors`."""
        c_api.checked(self._library, "gear_tensorrt_status")


def read_fields(collection: Fields) -> dict[str, Value]:
    """Fields of a collection by name; those without data as empty values."""
    sizes = {FIELD_CHAR: 1, FIELD_FLOAT32: 4, FIELD_INT32: 4}
    fields = collection.fields[: collection.count]
    return {
        field.name.decode(): Value(
            field.type,
            ctypes.string_at(field.data, field.length * sizes[field.type]) if field.data else b"",
            field.length,
        )
        for field in fields
    }


@cache
def _functions(version: int) -> ctypes.CDLL:
    source = Path(__file__).with_name("host.cpp")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "host.so"
        command = (
            os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-shared", "-fPIC",
            f"-I{ROOT / 'plugins'}", f"-DHOST_TENSORRT_VERSION={version}", source, "-o", path,
        )  # fmt: skip
        subprocess.run(command, check=True)
        functions = ctypes.CDLL(str(path))
    for name in ("load", "create", "clone", "attach"):
        getattr(functions, f"host_{name}").restype = c_void_p
    for name in ("take_log", "name", "version", "namespace", "metadata"):
        getattr(functions, f"host_{name}").restype = c_char_p
    for name in ("field_names", "serialized"):
        getattr(functions, f"host_{name}").restype = POINTER(Fields)
    functions.host_workspace.restype = c_size_t
    functions.host_load.argtypes = (c_char_p,)
    functions.host_field_names.argtypes = (c_void_p,)
    functions.host_create.argtypes = (c_void_p, c_void_p, c_int32, c_int32)
    for name in (
        "destroy", "clone", "name", "version", "namespace", "interface_major", "num_outputs",
        "metadata", "attach", "serialized",
    ):  # fmt: skip
        getattr(functions, f"host_{name}").argtypes = (c_void_p,)
    functions.host_aliased_input.argtypes = (c_void_p, c_int32)
    tensors = (c_void_p, c_int32)
    for name in ("configure", "workspace", "shape_change"):
        getattr(functions, f"host_{name}").argtypes = (c_void_p, *tensors, *tensors)
    for name in ("output_types", "output_shapes"):
        getattr(functions, f"host_{name}").argtypes = (c_void_p, *tensors, *tensors)
    functions.host_supports.argtypes = (c_void_p, c_int32, c_void_p, c_int32, c_int32)
    functions.host_enqueue.argtypes = (c_void_p,) * 7
    return functions


def _inputs_and_outputs(kind: type, descs: Sequence[Structure]) -> tuple[object, int, object, int]:
    inputs = (kind * NUM_INPUTS)(*descs[:NUM_INPUTS])
    outputs = (kind * NUM_OUTPUTS)(*descs[NUM_INPUTS:])
    return inputs, NUM_INPUTS, outputs, NUM_OUTPUTS
