"""External data files of ONNX models: read and copied as streams, never mapped or held whole.

A file that is mapped counts as memory of the process, and one of 16 GB is too much of it. Hard
links would save the copy, but onnx refuses to read a file with more than one name, the user's own
included (docs/adr/0009).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1 << 20
"""What is held of a file at a time: fits a core's cache, so that one pass reads memory once."""
_COPY_BYTES = 1 << 23
_FICLONE = 0x40049409
"""Linux' ioctl that makes a file share another one's blocks until one of them is written to."""
_ZEROS = memoryview(bytes(CHUNK_BYTES))


def read_chunks(path: Path, offset: int, length: int) -> Iterator[memoryview]:
    """Yield the bytes of a part of a file, at most `CHUNK_BYTES` at a time.

    What is yielded is valid until the next item is taken.

    Args:
        path: The file.
        offset: Where the part begins, bytes.
        length: Its bytes.

    Raises:
        OSError: The file cannot be read, or ends before the part does.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        end = offset + length
        if os.fstat(file.fileno()).st_size < end:
            raise _shorter(file)
        for start, stop in _stored_parts(file, offset, end):
            yield from _zeros(start - offset)
            file.seek(start)
            for position in range(start, stop, CHUNK_BYTES):
                chunk = buffer[: min(CHUNK_BYTES, stop - position)]
                _fill(file, chunk)
                yield chunk
            offset = stop
        yield from _zeros(end - offset)


def clone(source: Path, target: Path, progress: Callable[[float], None]) -> None:
    """Make a file of its own with the content of another one, which is not changed.

    Where the file system can share blocks, this costs neither time nor space.

    Args:
        source: The file to read.
        target: The file to be.
        progress: Told the fraction that is copied, now and then.

    Raises:
        OSError: The disk is full, or a file cannot be opened.
    """
    with source.open("rb", buffering=0) as old, target.open("xb", buffering=0) as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:  # another file system, or one that cannot: each says so in its own way
            _copy(old, new, progress)


def _copy(old: BinaryIO, new: BinaryIO, progress: Callable[[float], None]) -> None:
    """Copy what is stored; holes stay holes."""
    size = os.fstat(old.fileno()).st_size
    new.truncate(size)
    buffer = memoryview(bytearray(_COPY_BYTES))
    for start, stop in _stored_parts(old, 0, size):
        old.seek(start)
        new.seek(start)
        for position in range(start, stop, _COPY_BYTES):
            chunk = buffer[: min(_COPY_BYTES, stop - position)]
            _fill(old, chunk)
            _drain(chunk, new)
            progress((position + len(chunk)) / size)


def _stored_parts(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where the parts of a file between two offsets begin and end that are not holes."""
    while start < end:
        try:
            start = os.lseek(file.fileno(), start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # nothing but a hole is left
        stop = min(os.lseek(file.fileno(), start, os.SEEK_HOLE), end)
        if start < stop:
            yield start, stop
        start = max(stop, start)


def _zeros(length: int) -> Iterator[memoryview]:
    for position in range(0, length, CHUNK_BYTES):
        yield _ZEROS[: min(CHUNK_BYTES, length - position)]


def _fill(file: BinaryIO, chunk: memoryview) -> None:
    filled = 0
    while filled < len(chunk):
        count = file.readinto(chunk[filled:])  # type: ignore[attr-defined]
        if not count:
            raise _shorter(file)
        filled += count


def _shorter(file: BinaryIO) -> OSError:
    return OSError(errno.EIO, "the file has become shorter", file.name)


def _drain(chunk: memoryview, file: BinaryIO) -> None:
    while chunk:
        chunk = chunk[file.write(chunk) :]
