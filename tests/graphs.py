"""GearAttention graphs built by hand, so that no test of the runtime depends on the exporter."""

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import DOMAIN, GEAR_ATTENTION, CompressionConfig, graph, layout_hash
from gear_trt.spec.ops import LAYOUT_HASH_KEY, OPSET_VERSION

ONNX_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
SHARED = (graph.PAGE_TABLE, graph.SLOTS, graph.PAST_LENGTHS, graph.NEW_LENGTHS)


def attributes(layer: LayerFacts, index: int = 0, **changes):
    return {
        "num_heads": layer.num_heads,
        "num_kv_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "layer": index,
        "scale": layer.head_dim**-0.5,
        **layer.config.model_dump(),
        "layout_hash": layout_hash(),
        "plugin_version": "1",
        "plugin_namespace": DOMAIN,
        **changes,
    }


def attention_node(inputs, output, index, values):
    state = [graph.page_pool_input(index), graph.residual_buffer_input(index)]
    return helper.make_node(
        GEAR_ATTENTION.name,
        [*inputs, *state, *SHARED],
        [output, graph.page_pool_output(index), graph.residual_buffer_output(index)],
        name=f"attention.{index}",
        domain=DOMAIN,
        **values,
    )


def state_values(index, buffer_type):
    """Value infos of a layer's state: (inputs, outputs)."""
    pool = ("num_pages", None, None)
    rows = ("slots", None, None, None, None)
    return tuple(
        [
            helper.make_tensor_value_info(pool_name, TensorProto.INT32, pool),
            helper.make_tensor_value_info(rows_name, ONNX_TYPES[buffer_type], rows),
        ]
        for pool_name, rows_name in (
            (graph.page_pool_input(index), graph.residual_buffer_input(index)),
            (graph.page_pool_output(index), graph.residual_buffer_output(index)),
        )
    )


def shared_values():
    """Value infos of the inputs that all layers share."""
    shapes = (("B", "max_pages"), ("B",), ("B",), ("B",))
    return [
        helper.make_tensor_value_info(name, TensorProto.INT32, shape)
        for name, shape in zip(SHARED, shapes, strict=True)
    ]


def make_model(nodes, inputs, outputs, initializers=()):
    model = helper.make_model(
        helper.make_graph(nodes, "gear", inputs, outputs, list(initializers)),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, OPSET_VERSION)],
        ir_version=10,
    )
    helper.set_model_props(model, {LAYOUT_HASH_KEY: layout_hash()})
    return model


def one_node_model(layer: LayerFacts, *, dtype="float32", buffer_type=None, values=None):
    """One GearAttention node whose query, key and value are graph inputs."""
    inputs, outputs = state_values(0, buffer_type or layer.config.buffer_dtype)
    tokens = [
        helper.make_tensor_value_info(name, ONNX_TYPES[dtype], ("B", "S", None))
        for name in ("query", "key", "value")
    ]
    output = helper.make_tensor_value_info("output", ONNX_TYPES[dtype], ("B", "S", None))
    node = attention_node(["query", "key", "value"], "output", 0, values or attributes(layer, 0))
    return make_model([node], [*tokens, *inputs, *shared_values()], [output, *outputs])


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
    seed: int = 0

    @property
    def facts(self) -> LayerFacts:
        return LayerFacts(num_heads=4, num_kv_heads=2, head_dim=32, config=self.config)

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
