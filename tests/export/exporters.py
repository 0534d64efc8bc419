"""The ways in which people export a decoder with a KV cache to ONNX."""

import warnings

import onnx
import torch
from transformers import DynamicCache, StaticCache

BATCH, NEW, PAST = 2, 3, 5


class GrowingCache(torch.nn.Module):
    """A decoder whose cache is flat tensors: what a user's own export script looks like."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, input_ids, attention_mask, position_ids, *past):
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)) or None)
        positions = {} if position_ids is None else {"position_ids": position_ids}
        outputs = self.network(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            **positions,
        )
        layers = outputs.past_key_values.layers
        return outputs.logits, *(item for layer in layers for item in (layer.keys, layer.values))


class FixedCache(torch.nn.Module):
    """A decoder with transformers' StaticCache: tensors of full length, written at positions."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, input_ids, cache_position, *past):
        capacity = past[0].shape[2]
        cache = StaticCache(config=self.network.config, max_cache_len=capacity)
        for layer, keys, values in zip(cache.layers, past[::2], past[1::2], strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = cache_position[0].clone()
        outputs = self.network(
            input_ids=input_ids,
            position_ids=cache_position[None],
            past_key_values=cache,
            use_cache=True,
        )
        layers = outputs.past_key_values.layers
        return outputs.logits, *(item for layer in layers for item in (layer.keys, layer.values))


def cache_shapes(network):
    """[(H, D)] of every layer."""
    with torch.no_grad():
        cache = network(torch.zeros(1, 1, dtype=torch.int64), use_cache=True).past_key_values
    return [(layer.keys.shape[1], layer.keys.shape[3]) for layer in cache.layers]


def cache_names(layers):
    return [f"{layer}.{side}" for layer in range(layers) for side in ("key", "value")]


def growing_arguments(network):
    shapes = cache_shapes(network)
    caches = [torch.randn(BATCH, heads, PAST, dim) for heads, dim in shapes for _ in range(2)]
    arguments = (
        torch.zeros(BATCH, NEW, dtype=torch.int64),
        torch.ones(BATCH, PAST + NEW, dtype=torch.int64),
        torch.arange(PAST, PAST + NEW).repeat(BATCH, 1),
        *caches,
    )
    names = cache_names(len(shapes))
    inputs = ["input_ids", "attention_mask", "position_ids"]
    return arguments, {
        "input_names": inputs + [f"past_key_values.{name}" for name in names],
        "output_names": ["logits", *(f"present.{name}" for name in names)],
    }


def save_dynamo(network, path, *, opset):
    """torch.onnx.export with the cache as inputs and outputs."""
    arguments, names = growing_arguments(network)
    dynamic = torch.export.Dim.DYNAMIC
    rows = {0: dynamic, 1: dynamic}
    caches = tuple({0: dynamic, 2: dynamic} for _ in arguments[3:])
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            GrowingCache(network).eval(),
            arguments,
            path,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=(rows, rows, rows, caches),
            verbose=False,
            **names,
        )
    return path


def save_torchscript(network, path, *, opset=18):
    """The TorchScript exporter, with the names and axes that optimum gives."""
    arguments, names = growing_arguments(network)
    axes = {
        name: {0: "batch_size", 2: "past_sequence_length"}
        if "past" in name
        else {0: "batch_size", 2: "past_sequence_length + sequence_length"}
        for name in names["input_names"][3:] + names["output_names"][1:]
    }
    axes |= {
        name: {0: "batch_size", 1: "sequence_length"}
        for name in ("input_ids", "position_ids", "logits")
    }
    axes["attention_mask"] = {0: "batch_size", 1: "past_sequence_length + sequence_length"}
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            GrowingCache(network).eval(),
            arguments,
            path,
            dynamo=False,
            opset_version=opset,
            dynamic_axes=axes,
            do_constant_folding=True,
            **names,
        )
    return path


def save_static(network, path, *, opset, capacity=96):
    shapes = cache_shapes(network)
    caches = [torch.randn(BATCH, heads, capacity, dim) for heads, dim in shapes for _ in range(2)]
    names = cache_names(len(shapes))
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            FixedCache(network).eval(),
            (torch.zeros(BATCH, NEW, dtype=torch.int64), torch.arange(PAST, PAST + NEW), *caches),
            path,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=(
                {0: dynamic, 1: dynamic},
                {0: dynamic},
                tuple({0: dynamic} for _ in caches),
            ),
            input_names=["input_ids", "cache_position"]
            + [f"past_key_values.{name}" for name in names],
            output_names=["logits", *(f"present.{name}" for name in names)],
            verbose=False,
        )
    return path


def save_merged(network, path):
    """optimum's merged decoder: the graphs without and with a past in the branches of an If."""
    with_past = onnx.load(save_torchscript(network, path.with_suffix(".past.onnx")))
    without = onnx.load(save_without_past(network, path.with_suffix(".first.onnx")))
    for model, name in ((with_past, "with_past"), (without, "no_past")):
        model.graph.name = name
    inputs = list(with_past.graph.input)
    flag = onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    outputs = list(with_past.graph.output)
    for model in (with_past, without):
        del model.graph.input[:]
    choice = onnx.helper.make_node(
        "If",
        ["use_cache_branch"],
        [value.name for value in outputs],
        then_branch=with_past.graph,
        else_branch=without.graph,
    )
    merged = onnx.helper.make_graph([choice], "merged", [*inputs, flag], outputs)
    onnx.save(onnx.helper.make_model(merged, opset_imports=with_past.opset_import), path)
    return path


def save_without_past(network, path):
    """What optimum calls decoder_model.onnx: a graph for the first call, that returns a cache."""
    names = [f"present.{name}" for name in cache_names(len(cache_shapes(network)))]
    rows = {0: "batch_size", 1: "sequence_length"}
    axes = {"input_ids": rows, "attention_mask": rows, "position_ids": rows, "logits": rows}
    axes |= {name: {0: "batch_size", 2: "sequence_length"} for name in names}
    tokens = torch.zeros(BATCH, NEW, dtype=torch.int64)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            GrowingCache(network).eval(),
            (tokens, torch.ones_like(tokens), torch.arange(NEW).repeat(BATCH, 1)),
            path,
            dynamo=False,
            opset_version=18,
            dynamic_axes=axes,
            input_names=["input_ids", "attention_mask", "position_ids"],
            output_names=["logits", *names],
        )
    return path


def save_genai(checkpoint, folder, *options):
    """onnxruntime-genai's builder: GroupQueryAttention with packed QKV and its own rotation."""
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    arguments = (None, str(checkpoint), str(folder), "fp32", "cpu", str(folder / "cache"))
    create_model(*arguments, **parse_extra_options(*arguments, list(options)))
    return folder / "model.onnx"
