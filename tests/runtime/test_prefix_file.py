"""Prefixes go from one cache to another and change no answer; what is none is refused."""

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gear_trt.errors import ErrorCode
from gear_trt.runtime import cache_file, prefix_file
from gear_trt.runtime.engine import Engine
from gear_trt.runtime.paged_engine import PagedEngine
from tests.runtime.paged import OTHER, TEXT, new_cache, open_sequence, refusal, run


def rewrite(path, change):
    """Change the tensors of a file and give it a fitting checksum."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    metadata["checksum"] = cache_file._checksum(tensors)
    save_file(tensors, path, metadata)


@pytest.fixture
def toy_prefix(small, tmp_path):
    """A file with 196 tokens."""
    engine, cache = small()
    run(engine, open_sequence(engine, TEXT[:200]))
    prefix_file.save(cache, tmp_path / "prefix", TEXT[:200])
    return tmp_path / "prefix"


def test_a_saved_prefix_is_shared_by_another_cache(any_model, tmp_path):
    def new_engine():
        cache = new_cache(any_model, num_pages=9, slots=1)
        return PagedEngine(any_model, cache)

    engine, other, fresh = new_engine(), new_engine(), new_engine()
    first = open_sequence(engine, TEXT[:300])
    run(engine, first)
    engine.cache.close(first)
    saved = prefix_file.save(engine.cache, tmp_path / "prefix", TEXT[:300])
    assert saved == engine.cache.sinks + 4 * engine.cache.chunk
    assert prefix_file.load(other.cache, tmp_path / "prefix") == TEXT[:saved]
    other.cache.check()
    tokens = [*TEXT[:saved], *OTHER[:20]]
    sequence = open_sequence(other, tokens)
    assert other.cache.extend(sequence) == saved
    want = run(fresh, open_sequence(fresh, tokens))
    np.testing.assert_array_equal(run(other, sequence), want)


def test_only_what_is_there_is_saved(small, tmp_path):
    engine, cache = small(slots=1)
    refusal(ErrorCode.BAD_REQUEST, prefix_file.save, cache, tmp_path / "prefix", TEXT)
    open_sequence(engine, TEXT)
    error = refusal(ErrorCode.BAD_REQUEST, prefix_file.save, cache, tmp_path / "prefix", TEXT)
    assert "buffer row" in error.message
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_prefix_are_refused(small, toy_prefix, tmp_path):
    _, cache = small()
    refusal(ErrorCode.MISSING_FILE, prefix_file.load, cache, tmp_path / "none")
    toy_prefix.write_bytes(toy_prefix.read_bytes()[:-1])
    refusal(ErrorCode.BAD_CACHE_FILE, prefix_file.load, cache, toy_prefix)
    assert cache.nbytes == 0
    cache.check()


def test_a_flipped_bit_is_noticed(small, toy_prefix):
    content = bytearray(toy_prefix.read_bytes())
    content[-1000] ^= 1
    toy_prefix.write_bytes(content)
    _, cache = small()
    refusal(ErrorCode.BAD_CACHE_FILE, prefix_file.load, cache, toy_prefix)


def test_a_cache_file_is_no_prefix(toy_model, small, tmp_path):
    """Its pages may come of other slices, so that answers would not be those of the prompt."""
    with Engine(toy_model) as engine:
        engine.step([TEXT[:300]])
        engine.cache.save(tmp_path / "cache")
    _, cache = small()
    refusal(ErrorCode.BAD_CACHE_FILE, prefix_file.load, cache, tmp_path / "cache")


@pytest.mark.parametrize(
    ("lengths", "pages"),
    [([0], 0), ([196], 2), ([195], 2), ([200], 3), ([-1], 0), ([196, 0], 3), ([], 0)],
)
def test_other_lengths_than_whole_pages_are_refused(small, toy_prefix, lengths, pages):
    """A file that is whole but wrong: written by hand, with a fitting checksum."""

    def change(tensors):
        tensors["lengths"] = np.array(lengths, np.int32)
        tokens = max([0, *lengths])
        tensors["token_ids"] = np.zeros((len(lengths), tokens), np.int32)
        for layer in (0, 1):
            tensors[f"pages.{layer}"] = tensors[f"pages.{layer}"][:pages]
            rows = tensors[f"residual_buffer.{layer}"]
            tensors[f"residual_buffer.{layer}"] = np.repeat(rows, len(lengths), axis=0)

    rewrite(toy_prefix, change)
    _, cache = small()
    refusal(ErrorCode.BAD_CACHE_FILE, prefix_file.load, cache, toy_prefix)
    cache.check()


def test_sinks_that_are_not_finite_are_refused(small, toy_prefix):
    rewrite(toy_prefix, lambda tensors: tensors["residual_buffer.1"].fill(np.nan))
    _, cache = small()
    refusal(ErrorCode.BAD_CACHE_FILE, prefix_file.load, cache, toy_prefix)


def test_a_prefix_that_does_not_fit_is_refused(small, toy_prefix):
    _, cache = small(pages=3)
    refusal(ErrorCode.CONTEXT_EXCEEDED, prefix_file.load, cache, toy_prefix)
    cache.check()
    engine, cache = small(slots=1)
    open_sequence(engine, TEXT)
    error = refusal(ErrorCode.BAD_REQUEST, prefix_file.load, cache, toy_prefix)
    assert "buffer row" in error.message
