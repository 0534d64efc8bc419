"""What the operator benchmark asks of a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gear_trt.bench.rounds import Timed


@dataclass(frozen=True)
class Facts:
    """What a row says of a candidate, besides its times.

    Attributes:
        name: What rows call it; forms of one candidate share it, and the fastest is kept.
        engine: `gear` or `onnxruntime`.
        host: What calls the kernels: `onnxruntime` or `c-abi`.
        cache: How keys and values are stored.
        config: Fields of the compression config; None for peers.
        instruction_set: Of our kernels; None for peers, which choose for themselves.
    """

    name: str
    engine: str
    host: str
    cache: str
    config: dict[str, int] | None = None
    instruction_set: str | None = None


class Candidate(Protocol):
    """Attention over one kind of cache, filled, with independent copies to call in turn."""

    @property
    def facts(self) -> Facts:
        """What it is."""
        ...

    @property
    def bytes_per_token(self) -> float:
        """Bytes of one token in the cache, all KV heads, K and V."""
        ...

    @property
    def read_bytes(self) -> int:
        """Bytes of cache that one call reads, all sequences."""
        ...

    def output(self) -> NDArray[np.floating]:
        """Call once on the first copy and return [B, S, N, D]."""
        ...

    def timed(self) -> Sequence[Timed]:
        """What to time, one or several kinds of calls; `seconds` makes one value of them."""
        ...

    def seconds(self, times: dict[str, list[float]]) -> list[float]:
        """Return seconds per call, one value a round, from the times of all that was timed."""
        ...

    def compression_share(self, times: dict[str, list[float]]) -> float | None:
        """Return the part of a call's time that compressing pages takes; None where unknown."""
        ...
