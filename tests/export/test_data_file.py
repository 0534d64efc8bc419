"""Data files: read and copied as they are, holes included."""

import errno
import os

import numpy as np
import pytest

from gear_trt.export import data_file
from gear_trt.export.data_file import CHUNK_BYTES, clone, read_chunks

HOLE = 3 * CHUNK_BYTES


@pytest.fixture(params=["dense", "with holes", "one hole", "empty"])
def path(request, tmp_path):
    path = tmp_path / "data.bin"
    noise = np.random.default_rng(0).bytes(CHUNK_BYTES + 4321)
    with path.open("wb") as file:
        if request.param in ("dense", "with holes"):
            file.write(noise)
        if request.param == "with holes":
            file.seek(HOLE, os.SEEK_CUR)
            file.write(noise[:999])
            file.truncate(file.tell() + HOLE)
        if request.param == "one hole":
            file.truncate(HOLE)
    return path


def ignore(_):
    pass


def joined(path, offset, length):
    return b"".join(bytes(chunk) for chunk in read_chunks(path, offset, length))


def test_every_part_of_a_file_is_read_as_it_is(path):
    content = path.read_bytes()
    marks = [0, 1, 4096, CHUNK_BYTES, CHUNK_BYTES + 4000, CHUNK_BYTES + 4400, 4 * CHUNK_BYTES]
    marks = [mark for mark in [*marks, len(content)] if mark <= len(content)]
    for start in marks:
        for end in marks:
            if start <= end:
                assert joined(path, start, end - start) == content[start:end]


def test_chunks_are_small(path):
    sizes = [len(chunk) for chunk in read_chunks(path, 0, path.stat().st_size)]
    assert max(sizes, default=0) <= CHUNK_BYTES


@pytest.mark.parametrize("shares_blocks", [True, False])
def test_a_clone_has_the_same_content_and_a_life_of_its_own(path, monkeypatch, shares_blocks):
    if not shares_blocks:
        monkeypatch.setattr(data_file, "_FICLONE", 0)
    content, target = path.read_bytes(), path.with_name("clone.bin")
    clone(path, target, ignore)
    assert target.read_bytes() == content
    assert target.stat().st_blocks <= path.stat().st_blocks
    assert path.stat().st_nlink == target.stat().st_nlink == 1
    target.write_bytes(b"other")
    assert path.read_bytes() == content


def test_the_copy_of_a_large_file_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(data_file, "_FICLONE", 0)
    monkeypatch.setattr(data_file, "_COPY_BYTES", 1000)
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(2500))
    told = []
    clone(path, tmp_path / "clone.bin", told.append)
    assert told == [0.4, 0.8, 1.0]


def test_nothing_is_overwritten(path):
    with pytest.raises(FileExistsError):
        clone(path, path, ignore)


def test_a_part_beyond_the_end_is_an_error(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(b"x" * 100)
    content = joined(path, 0, 100)
    assert content == b"x" * 100
    with pytest.raises(OSError, match="has become shorter") as caught:
        joined(path, 0, 101)
    assert caught.value.errno == errno.EIO
