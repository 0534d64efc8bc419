"""The peer in every comparison: the same graph with ONNX Runtime's own FP32 cache.

Each GearAttention node of an engine becomes one `com.microsoft.GroupQueryAttention` whose past and
present share one buffer, the fastest FP32 cache that ONNX Runtime has on the CPU. Weights and every
other node stay the same, so a difference is the cache's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession, OrtValue

from gear_trt.runtime.manifest import MODEL_FILE, Manifest
from gear_trt.runtime.onnxruntime import session_options
from gear_trt.spec import GEAR_ATTENTION, graph

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Session option: where the weights of a model lie that comes from memory."""


def baseline_model(engine: Path) -> onnx.ModelProto:
    """Return an engine's graph with FP32 caches; its weights stay in the engine folder."""
    model = onnx.load(engine / MODEL_FILE, load_external_data=False)
    nodes = [
        _group_query_attention(node) if node.op_type == GEAR_ATTENTION.name else node
        for node in model.graph.node
    ]
    replaced = [node for node in nodes if node.op_type == "GroupQueryAttention"]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _replace_state(model.graph, replaced)
    if not any(item.domain == "com.microsoft" for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _group_query_attention(node: onnx.NodeProto) -> onnx.NodeProto:
    values = _attributes(node)
    layer = int(values["layer"])
    return helper.make_node(
        "GroupQueryAttention",
        [
            *node.input[:3],
            f"past_key.{layer}",
            f"past_value.{layer}",
            "seqlens_k",
            "total_sequence_length",
        ],
        [node.output[0], f"present_key.{layer}", f"present_value.{layer}"],
        name=f"gqa.{layer}",
        domain="com.microsoft",
        num_heads=values["num_heads"],
        kv_num_heads=values["num_kv_heads"],
        scale=values["scale"],
        softcap=values.get("softcap", 0.0),
        local_window_size=values.get("sliding_window", 0) or -1,
    )


def _replace_state(graph_proto: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Swap the compressed state's inputs and outputs for FP32 caches and their lengths."""
    read = {name for node in graph_proto.node for name in node.input}
    written = {name for node in graph_proto.node for name in node.output}
    inputs = [item for item in graph_proto.input if item.name in read]
    outputs = [item for item in graph_proto.output if item.name in written]
    inputs += [
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
    ]
    for node in nodes:
        shape = ["batch", _attributes(node)["kv_num_heads"], "capacity", None]
        inputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name in node.input[3:5]
        ]
        outputs += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name in node.output[1:]
        ]
    for field, items in (("input", inputs), ("output", outputs)):
        values = getattr(graph_proto, field)
        del values[:]
        values.extend(items)
    del graph_proto.value_info[:]


class Fp32Engine:
    """One sequence decoded with ONNX Runtime's FP32 cache.

    Args:
        session: The loaded graph of `baseline_model`.
        manifest: Of the engine.
        capacity: Longest sequence, tokens.
    """

    def __init__(
        self,
        session: Any,  # noqa: ANN401 - untyped, as is the binding
        manifest: Manifest,
        *,
        capacity: int,
    ) -> None:
        self._session = session
        self._manifest = manifest
        self._inputs = {item.name for item in session.get_inputs()}
        self._binding: Any = self._session.io_binding()
        self._binding.bind_output(graph.LOGITS)  # first: outputs come in binding order
        for index, layer in enumerate(manifest.layers):
            shape = (1, layer.num_kv_heads, capacity, layer.head_dim)
            for side in ("key", "value"):
                state = OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                self._binding.bind_ortvalue_input(f"past_{side}.{index}", state)
                self._binding.bind_ortvalue_output(f"present_{side}.{index}", state)
        self.length = 0

    @classmethod
    def open(cls, engine: Path, *, capacity: int, threads: int) -> Self:
        """Load the baseline of an engine folder.

        Args:
            engine: The engine folder; nothing is written to it.
            capacity: Longest sequence, tokens.
            threads: Intra-op threads of the session.
        """
        options = session_options(threads)
        options.add_session_config_entry(WEIGHTS_FOLDER, os.fspath(engine))
        session = InferenceSession(
            baseline_model(engine).SerializeToString(), options, ["CPUExecutionProvider"]
        )
        return cls(session, Manifest.read(engine), capacity=capacity)

    def sibling(self, *, capacity: int) -> Self:
        """Return an engine with the same weights and an empty cache of its own."""
        return type(self)(self._session, self._manifest, capacity=capacity)

    def reset(self) -> None:
        """Forget all tokens."""
        self.length = 0

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append [S] tokens and return their logits [S, vocab_size]."""
        total = self.length + len(tokens)
        feeds = {
            graph.INPUT_IDS: tokens[None],
            graph.PAST_LENGTHS: np.array([self.length], np.int32),
            graph.NEW_LENGTHS: np.array([len(tokens)], np.int32),
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
        }
        for name, value in feeds.items():
            if name in self._inputs:
                self._binding.bind_cpu_input(name, value)
        self._binding.bind_output(graph.LOGITS)  # anew: its shape differs from call to call
        self._session.run_with_iobinding(self._binding)
        self.length = total
        return np.asarray(self._binding.get_outputs()[0].numpy()[0])
