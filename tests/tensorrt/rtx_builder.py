"""Builds engines of one GearAttention node with TensorRT-RTX, in a process of its own.

``python -m tests.tensorrt.rtx_builder FOLDER``: `libtensorrt_rtx.so` must be on the loader's path,
or the parser aborts. Prints a JSON object: what became of each variant, and what TensorRT said.
"""

import json
import os
import sys
from pathlib import Path

import onnx
import tensorrt_rtx_bindings as trt
from onnx import TensorProto, helper

from gear_trt import tensorrt
from gear_trt.spec import DOMAIN, GEAR_ATTENTION, CompressionConfig, page_layout
from gear_trt.tensorrt.plugin import ALIASES_VARIABLE
from tests.tensorrt.host import attributes

TYPES = {"T": TensorProto.FLOAT16, "R": TensorProto.FLOAT16, "int32": TensorProto.INT32}
SIZES = {
    "min": {"B": 1, "S": 1, "num_pages": 1, "slots": 1, "max_pages": 1},
    "opt": {"B": 2, "S": 1, "num_pages": 32, "slots": 4, "max_pages": 8},
    "max": {"B": 4, "S": 16, "num_pages": 64, "slots": 4, "max_pages": 16},
}
VARIANTS = {
    "plain": {},
    "preview": {"has_preview": True},
    "declared": {"declares": True, "has_preview": True},
    "declared-without-preview": {"declares": True},
    "wrong-pool": {"page_words": 7},
}


class Logger(trt.ILogger):
    """Keeps what TensorRT says."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, message):
        self.lines.append([str(severity).removeprefix("Severity."), message])


def shape(tensor, **sizes):
    """Sizes of a tensor's axes; names where `sizes` has none."""
    config = CompressionConfig()
    words = page_layout(config, 64).page_words
    known = {**config.model_dump(), **attributes(), "page_words": words, **sizes}
    free = SIZES["min"].keys() - sizes.keys()
    return [axis if axis in free else eval(axis, dict(known)) for axis in tensor.shape]


def model(**sizes):
    """A graph of one node, with axes of free size."""
    op = GEAR_ATTENTION
    node = helper.make_node(
        op.name,
        [tensor.name for tensor in op.inputs],
        [tensor.name for tensor in op.outputs],
        name="attention",
        domain=DOMAIN,
        **attributes(),
    )
    inputs, outputs = (
        [
            helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], shape(tensor, **sizes))
            for tensor in tensors
        ]
        for tensors in (op.inputs, op.outputs)
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, op.version)]
    graph = helper.make_graph([node], "one-node", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=opsets)


def build(builder, logger, *, declares=False, has_preview=False, **sizes):
    """An engine's bytes, or None."""
    os.environ[ALIASES_VARIABLE] = "1" if declares else "0"
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model(**sizes).SerializeToString()):
        return None
    config = builder.create_builder_config()
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, has_preview)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)
    profile = builder.create_optimization_profile()
    for tensor in GEAR_ATTENTION.inputs:
        shapes = [shape(tensor, **SIZES[which], **sizes) for which in ("min", "opt", "max")]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config)


def main(folder):
    logger = Logger()
    builder = trt.Builder(logger)
    tensorrt.load(trt.get_plugin_registry())
    results = {}
    for name, options in VARIANTS.items():
        logger.lines.clear()
        engine = build(builder, logger, **options)
        if engine is not None:
            (folder / name).write_bytes(engine)
        results[name] = {"is_built": engine is not None, "log": list(logger.lines)}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
