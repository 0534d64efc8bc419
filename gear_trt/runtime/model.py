"""What engines share: the manifest, weights and graph, and tokenizer of an engine folder."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gear_trt.runtime.backend import Backend
from gear_trt.runtime.checks import in_range
from gear_trt.runtime.choice import BackendName, open_backend
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
    def open(
        cls,
        folder: Path,
        *,
        threads: int | None = None,
        backend: BackendName = BackendName.ONNXRUNTIME,
    ) -> Self:
        """Read the manifest and load the graph.

        Args:
            folder: The engine folder.
            threads: CPU threads of one step; None means all that this process may use.
            backend: What runs the graph.

        Raises:
            GearError: `MISSING_FILE`, `DAMAGED_ENGINE`, `LAYOUT_MISMATCH`, `BAD_REQUEST` for less
                than one thread, or those of `open_backend`.
        """
        usable = len(os.sched_getaffinity(0))
        threads = usable if threads is None else in_range("threads", threads, 1)
        manifest = Manifest.read(folder)
        return cls(folder, manifest, open_backend(backend, folder, manifest, threads=threads))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder.

        Raises:
            GearError: `MISSING_FILE`, or `DAMAGED_ENGINE`.
        """
        from gear_trt.runtime.text import load_tokenizer

        return load_tokenizer(self._folder)
