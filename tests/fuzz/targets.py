"""What is fuzzed: each target reads damaged input and may refuse it, with one clear line."""

import json
import random
from pathlib import Path

import numpy as np
import onnx

from gear_trt import native
from gear_trt.errors import GearError
from gear_trt.runtime.cache import GearCache
from gear_trt.runtime.engine import load
from gear_trt.runtime.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from gear_trt.spec import CompressionConfig, page_layout
from tests.fuzz.mutations import INTERESTING_INTEGERS, damaged, damaged_json
from tests.graphs import ToyModel
from tests.runtime.folders import write_engine

MAX_TOKENS = 200
PROMPT = [[1, 2, 3, 4, 5]]


class RefusedError(Exception):
    """The input was refused as it should be."""


class Manifests:
    """`gear.json`, as JSON of wrong values and as damaged bytes."""

    def __init__(self, folder: Path):
        self._folder = write_engine(folder / "engine", tokenizer=False)
        self._valid = (self._folder / MANIFEST_FILE).read_bytes()

    def run(self, rng: random.Random):
        if rng.random() < 0.7:
            data = damaged_json(rng, json.loads(self._valid))
        else:
            data = damaged(rng, self._valid)
        (self._folder / MANIFEST_FILE).write_bytes(data)
        with refusals(GearError):
            manifest = Manifest.read(self._folder)
            GearCache(manifest.layers, batch=1, max_tokens=MAX_TOKENS)
            _load_and_step(self._folder)


class Graphs:
    """`model.onnx` of an engine folder: what ONNX Runtime and the op make of it."""

    def __init__(self, folder: Path):
        self._folder = write_engine(folder / "engine", tokenizer=False)
        self._valid = (self._folder / MODEL_FILE).read_bytes()

    def run(self, rng: random.Random):
        data = _damaged_graph(rng, self._valid) if rng.random() < 0.6 else damaged(rng, self._valid)
        (self._folder / MODEL_FILE).write_bytes(data)
        with refusals(GearError):
            _load_and_step(self._folder)


class Sources:
    """An ONNX file that somebody wants to export."""

    def __init__(self, folder: Path):
        self._path = folder / "model.onnx"
        onnx.save(ToyModel().build(), self._path)
        self._valid = self._path.read_bytes()
        from gear_trt.export import inspect_model  # slow: other targets start without it

        self._inspect = inspect_model

    def run(self, rng: random.Random):
        data = _damaged_graph(rng, self._valid) if rng.random() < 0.6 else damaged(rng, self._valid)
        self._path.write_bytes(data)
        with refusals(GearError):
            self._inspect(self._path, config=CompressionConfig.preset("k4v4"))


class CacheFiles:
    """A saved cache: header and tensors of a safetensors file."""

    def __init__(self, folder: Path):
        self._path = folder / "cache.safetensors"
        self._engine = load(
            write_engine(folder / "engine", tokenizer=False), max_tokens=MAX_TOKENS, threads=1
        )
        self._engine.step([list(range(90))])
        self._engine.cache.save(self._path)
        self._valid = self._path.read_bytes()
        self._header = 8 + int.from_bytes(self._valid[:8], "little")

    def run(self, rng: random.Random):
        if rng.random() < 0.7:
            data = damaged(rng, self._valid[: self._header]) + self._valid[self._header :]
        else:
            data = damaged(rng, self._valid)
        self._path.write_bytes(data)
        with refusals(GearError):
            self._engine.cache.load(self._path)
        self._engine.step(PROMPT)


class PageTables:
    """Lengths, slots and page ids of a call, over memory with a pattern round it."""

    def __init__(self, _: Path):
        self._config = CompressionConfig.preset("k4v4")
        self._words = page_layout(self._config, 32).page_words

    def run(self, rng: random.Random):
        batch, seq_len, max_pages = rng.randint(1, 3), rng.randint(1, 70), rng.randint(1, 4)
        num_pages, num_slots = rng.randint(1, 6), rng.randint(1, 4)
        numbers = np.random.default_rng(rng.getrandbits(32))
        query = numbers.normal(size=(batch, seq_len, 4, 32)).astype(np.float32)
        key = numbers.normal(size=(batch, seq_len, 2, 32)).astype(np.float32)
        guard = 1 << 12
        pool = np.full(2 * guard + num_pages * 2 * self._words, 0x5A5A5A5A, np.int32)
        inside = pool[guard:-guard].reshape(num_pages, 2, self._words)
        inside[:] = 0
        rows = 2 * 2 * (self._config.sinks + self._config.chunk) * 32
        buffer = np.full(2 * guard + num_slots * rows, 0.25, np.float16)
        shape = (num_slots, 2, 2, self._config.sinks + self._config.chunk, 32)
        with refusals(ValueError):
            output = native.attention(
                query,
                key,
                key,
                page_pool=inside,
                residual_buffer=buffer[guard:-guard].reshape(shape),
                page_table=_indices(rng, (batch, max_pages), num_pages),
                slots=_indices(rng, (batch,), num_slots),
                past_lengths=_indices(rng, (batch,), 64 * max_pages),
                new_lengths=_indices(rng, (batch,), seq_len + 1),
                config=self._config,
                scale=1.0,
            )
            if not np.isfinite(output).all():
                raise AssertionError("the output is not finite")
        for array, pattern in ((pool, 0x5A5A5A5A), (buffer, 0.25)):
            if not ((array[:guard] == pattern).all() and (array[-guard:] == pattern).all()):
                raise AssertionError("written outside of the arrays")


TARGETS = {
    "manifest": Manifests,
    "graph": Graphs,
    "source": Sources,
    "cache-file": CacheFiles,
    "page-table": PageTables,
}


class refusals:  # noqa: N801 - a context manager, named for how it reads
    """Lets a kind of error pass as a refusal; it must say something in one line."""

    def __init__(self, kind: type[Exception]):
        self._kind = kind

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if not isinstance(error, self._kind):
            return False
        message = error.message if isinstance(error, GearError) else str(error)
        if not message or "\n" in message:
            raise AssertionError(f"no clear line: {message!r}") from error
        raise RefusedError from error


def _load_and_step(folder):
    with load(folder, max_tokens=None, threads=1) as engine:
        engine.step(PROMPT)


def _indices(rng, shape, limit):
    """Numbers below `limit` mostly, and a few that are not."""
    values = np.array(
        [
            rng.randrange(limit) if rng.random() < 0.93 else rng.choice(INTERESTING_INTEGERS)
            for _ in range(int(np.prod(shape)))
        ]
    )
    return values.astype(np.int32).reshape(shape)


def _damaged_graph(rng, valid):
    """Return a model with a few edits to its nodes, attributes, tensors and values."""
    model = onnx.ModelProto.FromString(valid)
    for _ in range(rng.randint(1, 2)):
        rng.choice(_GRAPH_EDITS)(rng, model.graph)
    return model.SerializeToString()


def _edit_attribute(rng, graph):
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    attribute = rng.choice(attributes)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(INTERESTING_INTEGERS) % 2**63
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    else:
        attribute.s = rng.choice((b"", b"x", b"\xff\xfe"))


def _drop_attribute(rng, graph):
    node = rng.choice([node for node in graph.node if node.attribute])
    del node.attribute[rng.randrange(len(node.attribute))]


def _edit_name(rng, graph):
    node = rng.choice(graph.node)
    names = rng.choice([names for names in (node.input, node.output) if names])
    everything = [name for node in graph.node for name in (*node.input, *node.output)]
    names[rng.randrange(len(names))] = rng.choice([*everything, "", "nowhere"])


def _edit_op(rng, graph):
    rng.choice(graph.node).op_type = rng.choice(("Add", "MatMul", "Identity", "If", "NoSuchOp", ""))


def _drop_node(rng, graph):
    if graph.node:
        del graph.node[rng.randrange(len(graph.node))]


def _edit_weight(rng, graph):
    weight = rng.choice(graph.initializer)
    edit = rng.random()
    if edit < 0.3:
        weight.data_type = rng.randrange(24)
    elif edit < 0.6 and weight.dims:
        index = rng.randrange(len(weight.dims))
        weight.dims[index] = rng.choice(INTERESTING_INTEGERS) % 2**63
    elif edit < 0.8:
        weight.raw_data = weight.raw_data[: len(weight.raw_data) // 2]
    else:
        weight.data_location = onnx.TensorProto.EXTERNAL
        location = rng.choice(("../../etc/passwd", "/etc/passwd", "model.onnx", "", "gear.json"))
        weight.external_data.add(key="location", value=location)
        weight.external_data.add(key="offset", value=str(rng.choice(INTERESTING_INTEGERS)))


def _edit_value(rng, graph):
    value = rng.choice([*graph.input, *graph.output])
    tensor = value.type.tensor_type
    if rng.random() < 0.5 or not tensor.shape.dim:
        tensor.elem_type = rng.randrange(24)
    else:
        index = rng.randrange(len(tensor.shape.dim))
        tensor.shape.dim[index].dim_value = rng.choice(INTERESTING_INTEGERS) % 2**63


_GRAPH_EDITS = (
    _edit_attribute,
    _drop_attribute,
    _edit_name,
    _edit_op,
    _drop_node,
    _edit_weight,
    _edit_value,
)
