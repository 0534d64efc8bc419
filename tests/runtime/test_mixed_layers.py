"""Layers with configs of their own: pools, bytes, files, and the same logits as the reference."""

import json

import numpy as np
import pytest
from onnx import numpy_helper

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.reference.attention import attend
from gear_trt.reference.cache import ReferenceCache, num_pages
from gear_trt.runtime.manifest import MANIFEST_FILE, SCHEMA_VERSION, Manifest
from gear_trt.spec import CompressionConfig, page_layout
from tests.graphs import ToyModel
from tests.runtime.folders import write_engine

TEXT = np.random.default_rng(3).integers(0, 256, 150)
CONFIGS = (
    CompressionConfig.preset("k4v4", key_bits=8, value_bits=8),
    CompressionConfig.preset("k4v2", rank=2, outliers=2),
    CompressionConfig.preset("exact", sinks=4),
    CompressionConfig.preset("k4v4", key_bits=16, value_bits=3, rotate_keys=0),
)
TOY = ToyModel(layer_configs=CONFIGS, num_layers=len(CONFIGS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("mixed") / "engine", TOY)


def load(folder, **kwargs):
    return gear_trt.load(folder, threads=1, **kwargs)


class ReferenceModel:
    """The toy model in numpy, one sequence, with the reference's caches."""

    def __init__(self, toy, capacity):
        weights = toy.build().graph.initializer
        self.weights = {item.name: numpy_helper.to_array(item) for item in weights}
        self.layers = [toy.facts_of(index) for index in range(toy.num_layers)]
        pages = num_pages(capacity, toy.layer_configs[0])
        self.table = np.arange(pages, dtype=np.int32)[None]
        self.caches = [
            ReferenceCache(
                layer.config,
                num_pages=pages,
                slots=1,
                num_kv_heads=layer.num_kv_heads,
                head_dim=layer.head_dim,
            )
            for layer in self.layers
        ]
        self.length = 0

    def step(self, tokens):
        hidden_SM = self.weights["embedding"][tokens]
        for index, (layer, cache) in enumerate(zip(self.layers, self.caches, strict=True)):
            query, key, value = (
                (hidden_SM @ self.weights[f"{name}.{index}.weight"]).reshape(
                    1, len(tokens), -1, layer.head_dim
                )
                for name in ("query", "key", "value")
            )
            lengths = {
                "page_table": self.table,
                "slots": np.zeros(1, np.int32),
                "past_lengths": np.array([self.length], np.int32),
                "new_lengths": np.array([len(tokens)], np.int32),
            }
            mixed = attend(query, key, value, cache, **lengths, scale=layer.head_dim**-0.5)
            cache.append(key, value, **lengths)
            output = mixed.reshape(len(tokens), -1) @ self.weights[f"output.{index}.weight"]
            hidden_SM = hidden_SM + output
        self.length += len(tokens)
        return (hidden_SM @ self.weights["head"])[-1]


def test_every_layer_computes_what_the_reference_does(folder, portable_kernels):
    reference = ReferenceModel(TOY, capacity=150)
    with load(folder, max_tokens=150) as engine:
        for part in np.split(TEXT, [100, 147, 148, 149]):
            np.testing.assert_allclose(engine.step([part])[0], reference.step(part), atol=0.02)


def test_every_layer_has_a_pool_of_its_own_size(folder):
    with load(folder, max_tokens=150) as engine:
        cache = engine.cache
        words = [page_layout(config, 32).page_words for config in CONFIGS]
        assert [pool.shape for pool in cache.page_pools] == [(2, 2, count) for count in words]
        types = [rows.dtype.name for rows in cache.residual_buffers]
        assert types == ["float16", "float16", "float32", "float16"]
        engine.step([TEXT[:68]])
        buffers = sum(rows.nbytes for rows in cache.residual_buffers)
        assert cache.nbytes == buffers + sum(2 * 4 * count for count in words)


def test_a_saved_cache_continues(folder, tmp_path):
    with load(folder, batch=2) as engine, load(folder, batch=2) as restored:
        engine.step([TEXT, TEXT[:70]])
        engine.cache.save(tmp_path / "cache")
        restored.cache.load(tmp_path / "cache")
        np.testing.assert_array_equal(restored.step([[1], [2]]), engine.step([[1], [2]]))


def test_a_cache_of_other_layers_is_refused(folder, tmp_path):
    swapped = ToyModel(layer_configs=CONFIGS[::-1], num_layers=len(CONFIGS))
    other = write_engine(tmp_path / "other", swapped)
    with load(folder) as engine, load(other) as restored:
        engine.step([TEXT])
        engine.cache.save(tmp_path / "cache")
        with pytest.raises(GearError) as caught:
            restored.cache.load(tmp_path / "cache")
    assert caught.value.code is ErrorCode.LAYOUT_MISMATCH


def changed_manifest(folder, tmp_path, change):
    fields = json.loads((folder / MANIFEST_FILE).read_text())
    change(fields)
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(fields))
    with pytest.raises(GearError) as caught:
        Manifest.read(tmp_path)
    return caught.value


@pytest.mark.parametrize(("field", "value"), [("chunk", 128), ("sinks", 0)])
def test_layers_that_place_tokens_differently_are_refused(folder, tmp_path, field, value):
    def change(fields):
        fields["layers"][1]["config"][field] = value

    error = changed_manifest(folder, tmp_path, change)
    assert error.code is ErrorCode.DAMAGED_ENGINE
    assert f"layers differ in {field}" in f"{error.message}\n{error.detail}"


def test_a_manifest_of_a_newer_version_says_what_to_do(folder, tmp_path):
    error = changed_manifest(
        folder, tmp_path, lambda fields: fields.update(schema_version=SCHEMA_VERSION + 1)
    )
    assert error.code is ErrorCode.LAYOUT_MISMATCH
    assert f"has schema version {SCHEMA_VERSION + 1}" in error.message
    assert "upgrade gear_trt" in error.hint
