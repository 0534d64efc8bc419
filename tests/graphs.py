"""GearAttention graphs built by hand, so that no test of the runtime depends on the exporter."""

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from gear_trt.bench.graphs import (
    ONNX_TYPES,
    attention_node,
    attributes,
    make_model,
    shared_values,
    state_values,
)
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import CompressionConfig, graph


@dataclass(frozen=True)
class ToyModel:
    """A small language model with random weights: embedding, attention layers, head.

    All layers have `config`, unless `layer_configs` has one for each.
    """

    config: CompressionConfig = field(default_factory=lambda: CompressionConfig.preset("k4v4"))
    dtype: str = "float32"
    vocab_size: int = 260
    layer_configs: tuple[CompressionConfig, ...] = ()
    num_layers: int = 2
    width: int = 48
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    seed: int = 0

    @property
    def facts(self) -> LayerFacts:
        return LayerFacts(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            config=self.config,
        )

    def facts_of(self, index):
        config = self.layer_configs[index] if self.layer_configs else self.config
        return self.facts.model_copy(update={"config": config})

    def build(self):
        rng = np.random.default_rng(self.seed)
        embedding = rng.normal(size=(self.vocab_size, self.width)).astype(self.dtype)
        head = (2 * rng.normal(size=(self.width, self.vocab_size))).astype(self.dtype)
        weights = [
            numpy_helper.from_array(embedding, "embedding"),
            numpy_helper.from_array(head, "head"),
        ]
        nodes = [helper.make_node("Gather", ["embedding", graph.INPUT_IDS], ["hidden.0"])]
        for index in range(self.num_layers):
            nodes += self._layer(index)
            weights += self._weights(index, rng)
        nodes.append(
            helper.make_node("MatMul", [f"hidden.{self.num_layers}", "head"], [graph.LOGITS])
        )
        states = [
            state_values(index, self.facts_of(index).config.buffer_dtype)
            for index in range(self.num_layers)
        ]
        ids = helper.make_tensor_value_info(graph.INPUT_IDS, TensorProto.INT64, ("B", "S"))
        logits = helper.make_tensor_value_info(
            graph.LOGITS, ONNX_TYPES[self.dtype], ("B", "S", self.vocab_size)
        )
        return make_model(
            nodes,
            [ids, *(value for inputs, _ in states for value in inputs), *shared_values()],
            [logits, *(value for _, outputs in states for value in outputs)],
            weights,
        )

    def _layer(self, index):
        hidden = f"hidden.{index}"
        projected = [f"{name}.{index}" for name in ("query", "key", "value")]
        return [
            *(helper.make_node("MatMul", [hidden, f"{name}.weight"], [name]) for name in projected),
            attention_node(
                projected, f"attended.{index}", index, attributes(self.facts_of(index), index)
            ),
            helper.make_node(
                "MatMul", [f"attended.{index}", f"output.{index}.weight"], [f"mixed.{index}"]
            ),
            helper.make_node("Add", [hidden, f"mixed.{index}"], [f"hidden.{index + 1}"]),
        ]

    def _weights(self, index, rng):
        query = self.facts.num_heads * self.facts.head_dim
        keys = self.facts.num_kv_heads * self.facts.head_dim
        shapes = {
            "query": (self.width, query),
            "key": (self.width, keys),
            "value": (self.width, keys),
            "output": (query, self.width),
        }
        return [
            numpy_helper.from_array(
                (rng.normal(size=shape) * shape[0] ** -0.5).astype(self.dtype),
                f"{name}.{index}.weight",
            )
            for name, shape in shapes.items()
        ]
