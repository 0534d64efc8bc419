"""Whole models that decode one sequence: ours, and the peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gear_trt.bench.dependencies import require
from gear_trt.bench.grid import config_name
from gear_trt.runtime.footprint import fp16_bytes_per_token, page_bytes_per_token
from gear_trt.runtime.manifest import Manifest

if TYPE_CHECKING:
    from gear_trt.bench.baseline import Fp32Engine
    from gear_trt.runtime.engine import Engine

GEAR = "gear"
ORT_FP32 = "ort-fp32"


@dataclass(frozen=True)
class Peer:
    """A cache of another engine.

    Attributes:
        engine: What runs it.
        cache: Element type, by the engine's own name.
        bits: Bits per element; a block of 32 q4_0 elements takes 18 bytes.
        has_flash_attention: Whether llama.cpp is told to use it; a q4_0 cache needs it.
    """

    engine: str
    cache: str
    bits: float
    has_flash_attention: bool = True


LLAMA_PEERS = {
    "llama-f16": Peer("llama.cpp", "f16", 16),
    "llama-f16-plain": Peer("llama.cpp", "f16", 16, has_flash_attention=False),
    "llama-q4_0": Peer("llama.cpp", "q4_0", 4.5),
}
PEERS = {ORT_FP32: Peer("onnxruntime", "fp32", 32), **LLAMA_PEERS}

IdArray = NDArray[np.int64]


@dataclass(frozen=True)
class DecoderSpec:
    """What a process needs to open a decoder.

    Attributes:
        name: One of the names above.
        engine: Engine folder.
        gguf: The same model for llama.cpp.
        capacity: Longest sequence, tokens.
        threads: CPU threads.
    """

    name: str
    engine: Path
    gguf: Path | None
    capacity: int
    threads: int

    def open(self) -> Decoder:
        """Load the model.

        Raises:
            GearError: Those of `gear_trt.load`; `MISSING_DEPENDENCY`; `MISSING_FILE` and
                `DAMAGED_MODEL` for a GGUF file.
        """
        return _OPENERS[self.name](self)


class Decoder(Protocol):
    """A loaded model and one sequence."""

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache of the tokens held takes, buffers included."""
        ...

    def step(self, tokens: IdArray) -> NDArray[np.floating]:
        """Append [S] tokens and return the logits [vocab_size] of the last one."""
        ...

    def reset(self) -> None:
        """Forget all tokens."""
        ...

    def sibling(self, capacity: int) -> Decoder:
        """Return a decoder with the same weights and an empty cache of its own."""
        ...


class GearDecoder:
    """Implements `Decoder` over the compressed cache.

    Args:
        engine: A loaded engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def cache_bytes(self) -> int:
        """See `Decoder.cache_bytes`."""
        return self._engine.cache.nbytes

    def step(self, tokens: IdArray) -> NDArray[np.floating]:
        """See `Decoder.step`."""
        return np.asarray(self._engine.step(tokens[None])[0])

    def reset(self) -> None:
        """See `Decoder.reset`."""
        self._engine.cache.reset()

    def sibling(self, capacity: int) -> GearDecoder:
        """See `Decoder.sibling`."""
        return GearDecoder(self._engine.sibling(max_tokens=capacity))


class OrtDecoder:
    """Implements `Decoder` over ONNX Runtime's FP32 cache.

    Args:
        engine: The baseline of an engine folder.
        bytes_per_token: Bytes of one token in its cache.
    """

    def __init__(self, engine: Fp32Engine, bytes_per_token: int) -> None:
        self._engine = engine
        self._bytes_per_token = bytes_per_token

    @property
    def cache_bytes(self) -> int:
        """See `Decoder.cache_bytes`."""
        return self._engine.length * self._bytes_per_token

    def step(self, tokens: IdArray) -> NDArray[np.floating]:
        """See `Decoder.step`."""
        return np.asarray(self._engine.step(tokens)[-1])

    def reset(self) -> None:
        """See `Decoder.reset`."""
        self._engine.reset()

    def sibling(self, capacity: int) -> OrtDecoder:
        """See `Decoder.sibling`."""
        return OrtDecoder(self._engine.sibling(capacity=capacity), self._bytes_per_token)


def bytes_per_token(name: str, manifest: Manifest) -> float:
    """Bytes that one token of a long text takes in a decoder's cache, all layers."""
    if name == GEAR:
        return page_bytes_per_token(manifest.layers)
    return fp16_bytes_per_token(manifest.layers) * PEERS[name].bits / 16


def cache_name(name: str, manifest: Manifest) -> str:
    """How a decoder stores keys and values: our config, or the peer's element type."""
    return config_name(manifest.layers[0].config) if name == GEAR else PEERS[name].cache


def candidate_name(name: str, manifest: Manifest) -> str:
    """What rows call a decoder: ours by its config as well, since engines differ in it."""
    return f"{GEAR} {cache_name(name, manifest)}" if name == GEAR else name


def engine_name(name: str) -> str:
    """What runs a decoder."""
    return GEAR if name == GEAR else PEERS[name].engine


def _open_gear(spec: DecoderSpec) -> Decoder:
    from gear_trt.runtime.engine import load

    return GearDecoder(load(spec.engine, max_tokens=spec.capacity, threads=spec.threads))


def _open_ort(spec: DecoderSpec) -> Decoder:
    require("onnxruntime")
    from gear_trt.bench.baseline import Fp32Engine

    engine = Fp32Engine.open(spec.engine, capacity=spec.capacity, threads=spec.threads)
    return OrtDecoder(engine, round(bytes_per_token(spec.name, Manifest.read(spec.engine))))


def _open_llama(spec: DecoderSpec) -> Decoder:
    require("llama_cpp")
    from gear_trt.bench.llama_cpp_decoder import LlamaDecoder, load_weights

    peer = LLAMA_PEERS[spec.name]
    return LlamaDecoder(
        load_weights(spec.gguf or Path()),
        cache_type=peer.cache,
        has_flash_attention=peer.has_flash_attention,
        bytes_per_token=bytes_per_token(spec.name, Manifest.read(spec.engine)),
        capacity=spec.capacity,
        threads=spec.threads,
    )


_OPENERS: dict[str, Callable[[DecoderSpec], Decoder]] = {
    GEAR: _open_gear,
    ORT_FP32: _open_ort,
    **dict.fromkeys(LLAMA_PEERS, _open_llama),
}
