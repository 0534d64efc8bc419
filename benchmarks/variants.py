"""The same engine with another compression config: only node attributes and state shapes differ."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from onnx import TensorProto

from gear_trt.runtime.manifest import ENGINE_FILE, MANIFEST_FILE, MODEL_FILE, Manifest
from gear_trt.spec import GEAR_ATTENTION, CompressionConfig, page_layout

_ELEMENT_TYPES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}


def write_variant(engine: Path, folder: Path, config: CompressionConfig) -> None:
    """Write an engine folder like `engine` whose layers all use `config`; weights are linked."""
    folder.mkdir()
    for file in engine.iterdir():
        if not file.name.startswith(ENGINE_FILE):  # a TensorRT engine has the config inside
            os.link(file, folder / file.name)
    manifest = Manifest.read(engine)
    model = onnx.load(engine / MODEL_FILE, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == GEAR_ATTENTION.name:
            _set_attributes(node, config)
    for value in (*model.graph.input, *model.graph.output):
        name, _, layer = value.name.partition(".")
        if name.startswith("page_pool"):
            words = page_layout(config, manifest.layers[int(layer)].head_dim).page_words
            value.type.tensor_type.shape.dim[2].dim_value = words
        elif name.startswith("residual_buffer"):
            value.type.tensor_type.shape.dim[3].dim_value = config.sinks + config.chunk
            value.type.tensor_type.elem_type = _ELEMENT_TYPES[config.buffer_dtype]
    for name in (MODEL_FILE, MANIFEST_FILE):
        (folder / name).unlink()  # a link: writing through it would change the original
    onnx.save(model, folder / MODEL_FILE)
    layers = tuple(layer.model_copy(update={"config": config}) for layer in manifest.layers)
    manifest.model_copy(update={"layers": layers, "tensorrt": None}).write(folder)


def _set_attributes(node: onnx.NodeProto, config: CompressionConfig) -> None:
    values = config.model_dump()
    for attribute in node.attribute:
        if attribute.name in values:
            attribute.i = values[attribute.name]
