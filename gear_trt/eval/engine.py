"""An engine folder: its own cache beside ONNX Runtime's FP32 cache in the same graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import gear_trt
from gear_trt.bench.baseline import Fp32Engine
from gear_trt.eval.candidate import GEAR, CacheFacts, cache_name, describe
from gear_trt.eval.steps import Steps
from gear_trt.runtime.footprint import FP16_BYTES, fp16_bytes_per_token, page_bytes_per_token
from gear_trt.spec import ModelConfig

_BITS = 8

_Step = Callable[[NDArray[np.int64]], NDArray[np.float32]]


class EngineSubject:
    """Implements `gear_trt.eval.subject.Subject` for an engine folder.

    Attributes:
        cache: The one cache that the folder was exported for.
        tokenizer: Of the folder.

    Args:
        folder: The engine folder.
        capacity: Tokens that a sequence can hold; None means the model's longest context.
        threads: CPU threads of a step.

    Raises:
        GearError: Those of `gear_trt.load`, and of the tokenizer.
    """

    def __init__(self, folder: Path, *, capacity: int | None, threads: int) -> None:
        self._folder, self._threads = folder, threads
        self._engine = gear_trt.load(folder, max_tokens=capacity, threads=threads)
        self._capacity = self._engine.cache.max_tokens
        manifest = self._engine.manifest
        self.name = manifest.model.source
        self.max_context = manifest.model.max_context
        self.tokenizer = self._engine.tokenizer
        fp16_bytes = fp16_bytes_per_token(manifest.layers)
        self.elements_per_token = fp16_bytes // FP16_BYTES
        configs = [layer.config for layer in manifest.layers]
        self.cache = CacheFacts(
            name=cache_name(folder.resolve().name, configs, is_scaled=manifest.has_key_scales),
            kind=GEAR,
            cache=describe(configs[0]),
            bits_per_element=page_bytes_per_token(manifest.layers)
            * _BITS
            / self.elements_per_token,
            buffer=configs[0].chunk,
            compression=ModelConfig.of_each(configs),
        )

    def exact(self) -> Steps:
        """See `Subject.exact`."""
        first = Fp32Engine.open(self._folder, capacity=self._capacity, threads=self._threads)
        return _Rows(lambda: _Fp32Row(first.sibling(capacity=self._capacity)))

    def with_cache(self, cache: CacheFacts) -> Steps:
        """See `Subject.with_cache`; an engine has one cache."""
        del cache
        return _Rows(lambda: _GearRow(self._engine.sibling(max_tokens=self._capacity)))


class _Fp32Row:
    """One sequence over ONNX Runtime's cache."""

    def __init__(self, engine: Fp32Engine) -> None:
        self.step: _Step = engine.step
        self.cache_bytes: int | None = None


class _GearRow:
    """One sequence over ours."""

    def __init__(self, engine: gear_trt.Engine) -> None:
        self._engine = engine

    def step(self, tokens_S: NDArray[np.int64]) -> NDArray[np.float32]:
        logits_SV: NDArray[np.float32] = self._engine.step([tokens_S.tolist()], all_logits=True)[0]
        return logits_SV

    @property
    def cache_bytes(self) -> int | None:
        return int(self._engine.cache.nbytes)


class _Rows:
    """Implements `Steps` with an engine for each sequence."""

    def __init__(self, make: Callable[[], _Fp32Row | _GearRow]) -> None:
        self._make = make
        self._rows: list[_Fp32Row | _GearRow] = []

    def reset(self) -> None:
        self._rows = []

    def step(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        if not self._rows:
            self._rows = [self._make() for _ in tokens_BS]
        every = [
            row.step(tokens_S) for row, tokens_S in zip(self._rows, tokens_BS.numpy(), strict=True)
        ]
        return torch.from_numpy(np.stack(every))

    @property
    def cache_bytes(self) -> int | None:
        held = [row.cache_bytes for row in self._rows]
        return None if None in held else sum(filter(None, held))
