"""What engines share: the manifest, weights and graph, and tokenizer of an engine folder."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.backend import Backend
from gear_trt.runtime.checks import in_range
from gear_trt.runtime.manifest import Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Model:
    """An opened engine folder, without any cache.

    Attributes:
        manifest: What the folder says of itself.
        backend: Weights and graph.

    Args:
        folder: The engine folder.
        manifest: Its manifest.
        backend: The inference engine that has loaded its graph.
    """

    def __init__(self, folder: Path, manifest: Manifest, backend: Backend) -> None:
        self.manifest = manifest
        self.backend = backend
        self._folder = folder

    @classmethod
    def open(cls, folder: Path, *, threads: int | None = None) -> Self:
        """Read the manifest and load the graph.

        Args:
            folder: The engine folder.
            threads: CPU threads of one step; None means all that this process may use.

        Raises:
            GearError: `MISSING_FILE`, `DAMAGED_ENGINE`, `LAYOUT_MISMATCH`, `MISSING_DEPENDENCY`,
                `MISSING_LIBRARY`, or `BAD_REQUEST` for less than one thread.
        """
        usable = len(os.sched_getaffinity(0))
        threads = usable if threads is None else in_range("threads", threads, 1)
        manifest = Manifest.read(folder)
        return cls(folder, manifest, _onnxruntime(folder, manifest, threads))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder.

        Raises:
            GearError: `MISSING_FILE`, or `DAMAGED_ENGINE`.
        """
        from gear_trt.runtime.text import load_tokenizer

        return load_tokenizer(self._folder)


def _onnxruntime(folder: Path, manifest: Manifest, threads: int) -> Backend:
    try:
        from gear_trt.runtime.onnxruntime import OnnxRuntimeBackend
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise GearError(
            ErrorCode.MISSING_DEPENDENCY,
            "onnxruntime is not installed",
            hint="pip install 'gear-trt[cpu]'",
        ) from None
    return OnnxRuntimeBackend(folder, vocab_size=manifest.model.vocab_size, threads=threads)
