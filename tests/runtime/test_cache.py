"""Sizes, files and invariants of the compressed cache."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gear_trt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime import cache_file
from gear_trt.runtime.cache import GearCache
from gear_trt.spec import CompressionConfig, bits_per_element
from tests.graphs import ToyModel

REPOSITORY = Path(__file__).parents[2]
TEXT = np.random.default_rng(1).integers(0, 256, 200)
FACTS = ToyModel().facts
PAGE_BYTES = 2 * 592 * 4  # KV heads · words of k4v4 at head_dim 32 · bytes
BUFFER_BYTES = 2 * 2 * 68 * 32 * 2  # KV heads · sides · rows · head_dim · bytes


def new_cache(preset="k4v4", *, batch=1, max_tokens=200, layers=2):
    facts = ToyModel(config=CompressionConfig.preset(preset)).facts
    return GearCache([facts] * layers, batch=batch, max_tokens=max_tokens)


def refusal(code, call, *args):
    with pytest.raises(GearError) as caught:
        call(*args)
    assert caught.value.code is code
    return caught.value


def load(folder, **kwargs):
    return gear_trt.load(folder, threads=1, **kwargs)


@pytest.fixture
def filled(toy_folder):
    """An engine that holds 150 tokens: two pages and an open chunk."""
    with load(toy_folder) as engine:
        engine.step([TEXT[:150]])
        yield engine


@pytest.mark.parametrize(
    ("length", "pages"), [(0, 0), (4, 0), (67, 0), (68, 1), (131, 1), (132, 2), (200, 3)]
)
def test_bytes_follow_the_pages_in_use(length, pages):
    cache = new_cache(batch=2)
    cache.lengths[:] = (length, 0)
    assert cache.nbytes == 2 * (pages * PAGE_BYTES + 2 * BUFFER_BYTES)
    assert cache.allocated_bytes == 2 * 2 * (3 * PAGE_BYTES + BUFFER_BYTES)
    assert cache.fp16_bytes == length * 2 * 2 * 2 * 32 * 2
    assert cache.compression_ratio == cache.fp16_bytes / cache.nbytes
    assert cache.bytes_per_token == (cache.nbytes / length if length else 0)


def test_long_sequences_approach_the_pages_ratio():
    cache = new_cache("k2v2", max_tokens=100_000)
    cache.lengths[:] = 100_000
    ratio = 16 / bits_per_element(FACTS.config.preset("k2v2"), FACTS.head_dim)
    assert cache.compression_ratio == pytest.approx(ratio, rel=0.02)


def test_pages_take_memory_only_when_they_are_used():
    # In a process of its own: a heap with room left over would be zeroed, and so touched.
    code = """
import psutil
from tests.runtime.test_cache import new_cache
process = psutil.Process()
before = process.memory_info().rss
cache = new_cache(max_tokens=4_000_000)
print(cache.allocated_bytes, process.memory_info().rss - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    allocated, taken = map(int, result.stdout.split())
    assert allocated > 5e8
    assert taken < 3e7


def test_saved_cache_continues_as_if_nothing_had_happened(filled, toy_folder, tmp_path):
    filled.cache.save(tmp_path / "cache")
    with load(toy_folder) as restored:
        address = restored.cache.page_pools[0].ctypes.data
        restored.cache.load(tmp_path / "cache")
        assert restored.cache.page_pools[0].ctypes.data == address
        assert restored.cache.nbytes == filled.cache.nbytes
        assert restored.cache.token_ids[0, :150].tolist() == TEXT[:150].tolist()
        for token in TEXT[150:]:
            np.testing.assert_array_equal(restored.step([[token]]), filled.step([[token]]))


def test_unequal_sequences_survive_a_file(toy_folder, tmp_path):
    rows = [TEXT[:140], TEXT[:3]]
    with load(toy_folder, batch=2) as engine, load(toy_folder, batch=2, max_tokens=300) as other:
        engine.step(rows)
        engine.cache.save(tmp_path / "cache")
        other.cache.load(tmp_path / "cache")
        np.testing.assert_array_equal(other.step([[1], [2]]), engine.step([[1], [2]]))


def test_file_has_only_pages_in_use(filled, tmp_path):
    path = tmp_path / "cache"
    filled.cache.save(path)
    assert path.stat().st_size < filled.cache.nbytes + 8000
    assert list(tmp_path.iterdir()) == [path]


def test_empty_cache_survives_a_file(tmp_path):
    new_cache().save(tmp_path / "cache")
    cache = new_cache()
    cache.lengths[:] = 5
    cache.load(tmp_path / "cache")
    assert cache.lengths.tolist() == [0]


def test_missing_file(tmp_path):
    refusal(ErrorCode.MISSING_FILE, new_cache().load, tmp_path / "none")


@pytest.mark.parametrize("size", [0, 7, 100, 20_000, -1])
def test_truncated_file(filled, tmp_path, size):
    path = tmp_path / "cache"
    filled.cache.save(path)
    path.write_bytes(path.read_bytes()[:size])
    refusal(ErrorCode.BAD_CACHE_FILE, new_cache().load, path)


def test_every_flipped_bit_is_noticed(filled, tmp_path):
    path = tmp_path / "cache"
    filled.cache.save(path)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for offset in range(header, len(content), 1999):
        content[offset] ^= 4
        path.write_bytes(content)
        refusal(ErrorCode.BAD_CACHE_FILE, new_cache().load, path)
        content[offset] ^= 4


def test_other_safetensors_file(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "cache")
    refusal(ErrorCode.BAD_CACHE_FILE, new_cache().load, tmp_path / "cache")


def test_tensors_of_wrong_shape(filled, tmp_path):
    """A file that is whole but wrong: written by hand, with a fitting checksum."""
    path = tmp_path / "cache"
    filled.cache.save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["pages.1"] = tensors["pages.1"][:1]
    metadata["checksum"] = cache_file._checksum(tensors)
    save_file(tensors, path, metadata)
    error = refusal(ErrorCode.BAD_CACHE_FILE, new_cache().load, path)
    assert "pages.1" in error.message


def test_file_of_another_config(filled, tmp_path):
    filled.cache.save(tmp_path / "cache")
    for other in (new_cache("k4v2"), new_cache(layers=3)):
        error = refusal(ErrorCode.LAYOUT_MISMATCH, other.load, tmp_path / "cache")
        assert "compression config" in error.message


def test_file_of_another_layout(filled, tmp_path, monkeypatch):
    filled.cache.save(tmp_path / "cache")
    monkeypatch.setattr(cache_file, "layout_hash", lambda: "0123456789abcdef")
    refusal(ErrorCode.LAYOUT_MISMATCH, new_cache().load, tmp_path / "cache")


def test_file_that_does_not_fit(filled, tmp_path):
    filled.cache.save(tmp_path / "cache")
    error = refusal(ErrorCode.BAD_REQUEST, new_cache(batch=2).load, tmp_path / "cache")
    assert "batch=1" in error.hint
    small = new_cache(max_tokens=149)
    error = refusal(ErrorCode.CONTEXT_EXCEEDED, small.load, tmp_path / "cache")
    assert "max_tokens=150" in error.hint


def test_full_disk_leaves_the_old_file(filled, tmp_path):
    path = tmp_path / "cache"
    filled.cache.save(path)
    content = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        error = refusal(ErrorCode.DISK_FULL, filled.cache.save, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(path) in error.message
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_only_files_are_overwritten(filled, tmp_path):
    refusal(ErrorCode.BAD_REQUEST, filled.cache.save, tmp_path)


@pytest.mark.parametrize(
    ("field", "place", "value", "fault"),
    [
        ("page_table", (0, 1), 0, "page has two owners"),
        ("slots", 1, 0, "row has two owners"),
        ("lengths", 0, -1, "negative"),
        ("lengths", 1, 201, "beyond max_tokens"),
    ],
)
def test_integrity_names_the_fault(field, place, value, fault):
    cache = new_cache(batch=2)
    cache.check_integrity()
    getattr(cache, field)[place] = value
    error = refusal(ErrorCode.BAD_CACHE_FILE, cache.check_integrity)
    assert fault in error.message


def test_integrity_notices_values_that_are_not_finite():
    cache = new_cache()
    cache.residual_buffers[1][0, 1, 0, 3, 3] = np.nan
    refusal(ErrorCode.BAD_CACHE_FILE, cache.check_integrity)
