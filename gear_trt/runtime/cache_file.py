"""Cache files: safetensors with the layout, the config of every layer and a checksum."""

from __future__ import annotations

import errno
import json
import re
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gear_trt.errors import ErrorCode, GearError
from gear_trt.reference.cache import num_pages
from gear_trt.runtime.footprint import buffer_shape
from gear_trt.runtime.manifest import LayerFacts
from gear_trt.spec import layout_hash, page_layout

CACHE = "gear.cache/1"
"""Kind of file: sequences as an engine left them."""
PREFIX = "gear.prefix/1"
"""Kind of file: one prompt's pages and sinks, made in slices that end where pages end."""
_NO_SPACE = re.compile(rf"os error ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\b")

Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class CacheContent:
    """The tokens of B sequences as a file holds them.

    Attributes:
        lengths: [B] int32.
        token_ids: [B, longest] int32.
        pages: Per layer [pages in use of all sequences, H, page_words] int32, by sequence.
        residual_buffers: Per layer [B, H, 2, sinks + C, D].
    """

    lengths: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    pages: list[NDArray[np.int32]]
    residual_buffers: list[NDArray[np.generic]]


def write(
    path: Path, content: CacheContent, layers: Sequence[LayerFacts], *, kind: str = CACHE
) -> None:
    """Write a cache file; an existing one is replaced only when the new one is complete.

    Raises:
        GearError: `DISK_FULL`, or `BAD_REQUEST` where something that is no file has this path.
    """
    if path.exists() and not path.is_file():
        raise GearError(
            ErrorCode.BAD_REQUEST, f"{path} is not a file", hint="choose another path for the cache"
        )
    tensors = _to_tensors(content)
    metadata = {
        "format": kind,
        "layout_hash": layout_hash(),
        "layers": _describe(layers),
        "checksum": _checksum(tensors),
    }
    # A folder of its own: safetensors writes to a file of a random name, which a kill would leave.
    workshop = path.with_name(path.name + ".partial")
    shutil.rmtree(workshop, ignore_errors=True)
    try:
        workshop.mkdir()
        save_file(tensors, workshop / path.name, metadata)
        (workshop / path.name).replace(path)
    except (OSError, SafetensorError) as error:
        if not _NO_SPACE.search(str(error)):
            raise
        raise GearError(
            ErrorCode.DISK_FULL,
            f"no space left to write {path}",
            hint="free some space, or save to another disk",
        ) from None
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def read(path: Path, layers: Sequence[LayerFacts], *, kind: str = CACHE) -> CacheContent:
    """Read and check a cache file.

    Raises:
        GearError: `MISSING_FILE`, `BAD_CACHE_FILE`, or `LAYOUT_MISMATCH`.
    """
    if not path.is_file():
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"there is no cache file {path}",
            hint="write one with cache.save(path)",
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None
    if metadata.get("format") != kind:
        raise _damaged(path, f"its format is {metadata.get('format')}, not {kind}")
    _check_origin(path, metadata, layers)
    if metadata.get("checksum") != _checksum(tensors):
        raise _damaged(path, "its checksum does not fit its content")
    return _from_tensors(path, tensors, layers)


def _check_origin(path: Path, metadata: dict[str, str], layers: Sequence[LayerFacts]) -> None:
    for what, found, expected in (
        ("page layout", metadata.get("layout_hash"), layout_hash()),
        ("layers or compression config", metadata.get("layers"), _describe(layers)),
    ):
        if found != expected:
            raise GearError(
                ErrorCode.LAYOUT_MISMATCH,
                f"{path} was written with another {what}",
                hint="load it with the engine that wrote it, or prefill again",
            )


def _to_tensors(content: CacheContent) -> Tensors:
    tensors: Tensors = {"lengths": content.lengths, "token_ids": content.token_ids}
    for layer, pages in enumerate(content.pages):
        tensors[f"pages.{layer}"] = pages
        tensors[f"residual_buffer.{layer}"] = content.residual_buffers[layer]
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _from_tensors(path: Path, tensors: Tensors, layers: Sequence[LayerFacts]) -> CacheContent:
    def take(name: str, dtype: str, *shape: int) -> NDArray[np.generic]:
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tensor.shape != shape:
            found = "missing" if tensor is None else f"{tensor.dtype}{list(tensor.shape)}"
            raise _damaged(path, f"{name} is {found}, expected {dtype}{list(shape)}")
        return tensor

    batch = len(tensors.get("lengths", ()))
    lengths = take("lengths", "int32", batch).astype(np.int32)
    content = CacheContent(
        lengths,
        take("token_ids", "int32", batch, int(lengths.max(initial=0))).astype(np.int32),
        [],
        [],
    )
    for index, layer in enumerate(layers):
        pages = sum(num_pages(int(length), layer.config) for length in lengths)
        words = page_layout(layer.config, layer.head_dim).page_words
        content.pages.append(
            take(f"pages.{index}", "int32", pages, layer.num_kv_heads, words).astype(np.int32)
        )
        content.residual_buffers.append(
            take(
                f"residual_buffer.{index}",
                layer.config.buffer_dtype,
                batch,
                *buffer_shape(layer),
            )
        )
    return content


def _describe(layers: Sequence[LayerFacts]) -> str:
    return json.dumps([layer.model_dump() for layer in layers], sort_keys=True)


def _checksum(tensors: Tensors) -> str:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].data, zlib.crc32(name.encode(), checksum))
    return f"{checksum:08x}"


def _damaged(path: Path, reason: str) -> GearError:
    return GearError(
        ErrorCode.BAD_CACHE_FILE,
        f"{path} is no cache file or is damaged: {reason}",
        hint="prefill again and save the cache anew",
    )
