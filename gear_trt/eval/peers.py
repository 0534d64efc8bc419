"""Our peers as caches of transformers: KIVI, per-token, FP8, ONNX Runtime, llama.cpp, HQQ, quanto.

Where we have no code of a peer that runs here, its format is simulated: the cache holds the values
that the format gives back, and the bits are those of the format. KIVI is a config of our own
engine. The caches of transformers are the real ones. All keep as many of the
newest tokens in full precision as our residual buffer does, even those that would not: what differs
is the format alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, QuantizedCache
from transformers.cache_utils import DynamicLayer

from gear_trt.bench.dependencies import is_installed, require
from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval import formats
from gear_trt.eval.candidate import Candidate, Decoder, exact, gear, head_dim
from gear_trt.eval.formats import Format
from gear_trt.spec import CompressionConfig, ModelConfig

BUFFER = 64
"""Newest tokens that peers keep in full precision, at most, where nothing else is asked for."""
FP16_BITS = 16


@dataclass(frozen=True)
class Setting:
    """What peers are made for.

    Attributes:
        model: The model.
        calibration_BT: [B, T] token ids, not those that are judged, for formats with fixed scales.
        buffer: Newest tokens that they keep in full precision, at most.
    """

    model: Any
    calibration_BT: Tensor
    buffer: int = BUFFER

    @property
    def config(self) -> PreTrainedConfig:
        """Of the model."""
        config: PreTrainedConfig = self.model.config
        return config

    @cached_property
    def largest(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer the largest magnitudes [1, H, 1, D] of keys and values."""
        decoder = Decoder(self.model, exact())
        decoder.step(self.calibration_BT)
        layers: list[Any] = list(decoder.cache.layers)
        return [(_largest(layer.keys), _largest(layer.values)) for layer in layers]


class SimulatedLayer(DynamicLayer):  # type: ignore[no-untyped-call] # transformers is untyped
    """Holds what a format gives back: full chunks go through it once, newer tokens stay exact.

    Args:
        keys: Format of the keys.
        values: Format of the values.
        chunk: Tokens of a chunk.
    """

    def __init__(self, keys: Format, values: Format, chunk: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._formats = (keys, values)
        self._chunk = chunk
        self._held = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, H, S, D] and return the past as the format holds it and the new ones exact."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        full = keys.shape[-2] // self._chunk * self._chunk
        if full > self._held:
            self.keys, self.values = (
                _through(x, self._held, full, format_)
                for x, format_ in zip((keys, values), self._formats, strict=True)
            )
            self._held = full
        return keys, values

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self._held = 0


def simulated(
    name: str,
    setting: Setting,
    *,
    kind: str,
    cache: str,
    bits: float,
    layers: Callable[[int], tuple[Format, Format]],
) -> Candidate:
    """Return a peer of which only the format is there.

    Args:
        name: Name of the candidate.
        setting: What it is made for.
        kind: Whose format it is.
        cache: The format, for people.
        bits: Bits per element, scales included.
        layers: Returns the formats of the keys and the values of a layer.
    """

    def make(config: PreTrainedConfig) -> Cache:
        kinds = [type(layer) for layer in DynamicCache(config=config).layers]
        if set(kinds) != {DynamicLayer}:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"{name} is simulated for layers that see all tokens, and this model has others",
                hint="leave the peer out with --peers",
            )
        chunk = setting.buffer
        return Cache(layers=[SimulatedLayer(*layers(index), chunk) for index in range(len(kinds))])

    return Candidate(name, kind, cache, bits, setting.buffer, is_simulated=True, make=make)


def kivi_config(
    key_bits: int, value_bits: int, group_size: int, chunk: int = BUFFER
) -> CompressionConfig:
    """Return KIVI's format as a config: GEAR's backbone at 2 bits, without the corrections."""
    return CompressionConfig.preset(
        "paper-2bit",
        key_bits=key_bits,
        value_bits=value_bits,
        group_size=group_size,
        chunk=chunk,
        rank=0,
        outliers=0,
    )


def _kivi(name: str, setting: Setting, *, shape: tuple[int, int, int]) -> Candidate:
    cache = f"K per channel, V per token, groups of {shape[2]}; by our kernels"
    ours = gear(name, ModelConfig(kivi_config(*shape, chunk=setting.buffer)), setting.config)
    return replace(ours, kind="kivi", cache=cache)


def _per_token(name: str, setting: Setting, *, bits: int, group: int) -> Candidate:
    shared = min(group, head_dim(setting.config))
    format_ = partial(formats.per_token, bits=bits, group=group)
    metadata = 2 * FP16_BITS / shared
    cache = f"K and V per token, groups of {shared}"
    return simulated(
        name,
        setting,
        kind="per-token",
        cache=cache,
        bits=bits + metadata,
        layers=lambda _: (format_, format_),
    )


def _fp8(name: str, setting: Setting) -> Candidate:
    return simulated(
        name,
        setting,
        kind="fp8",
        cache="E4M3, scale 1",
        bits=8,
        layers=lambda _: (formats.fp8, formats.fp8),
    )


def _static(name: str, setting: Setting, *, kind: str, bits: int, per_channel: bool) -> Candidate:
    """Fixed scales come from the calibration text; they cost no bits per token."""
    scope = "channel" if per_channel else "tensor"

    def of_layer(layer: int) -> tuple[Format, Format]:
        keys, values = (
            partial(
                formats.symmetric, bits=bits, largest=largest if per_channel else largest.amax()
            )
            for largest in setting.largest[layer]
        )
        return keys, values

    cache = f"symmetric, one fixed scale per {scope}"
    return simulated(name, setting, kind=kind, cache=cache, bits=bits, layers=of_layer)


def _llama_cpp(name: str, setting: Setting, *, format_: Format, bits: int) -> Candidate:
    return simulated(
        name,
        setting,
        kind="llama.cpp",
        cache=f"blocks of {formats.BLOCK} channels",
        bits=bits + FP16_BITS / formats.BLOCK,
        layers=lambda _: (format_, format_),
    )


def _transformers(name: str, setting: Setting, *, backend: str, bits: int) -> Candidate:
    """The real `QuantizedCache`: whenever its buffer is full, it quantizes all that it holds."""
    require(PACKAGES[name])
    group = 64
    axis = {"hqq": 1, "quanto": 0}[backend]  # as transformers' guide has them
    return Candidate(
        name,
        "transformers",
        f"QuantizedCache, backend {backend}, groups of {group}",
        bits + 2 * FP16_BITS / group,
        setting.buffer,
        make=lambda config: QuantizedCache(
            backend,
            config,
            nbits=bits,
            axis_key=axis,
            axis_value=axis,
            q_group_size=group,
            residual_length=setting.buffer,
        ),
    )


KIVI: dict[str, tuple[int, int, int]] = {
    "kivi-k4v4-g32": (4, 4, 32),
    "kivi-k4v4-g64": (4, 4, 64),
    "kivi-k4v3-g64": (4, 3, 64),
    "kivi-k4v2-g64": (4, 2, 64),
    "kivi-k3v2-g64": (3, 2, 64),
    "kivi-k2v2-g32": (2, 2, 32),
    "kivi-k2v2-g64": (2, 2, 64),
}
"""Bits of K and V and group size. KIVI as published has 2 or 4 bits on both sides; the others are
what its scheme gives at the sizes in between."""

PEERS: dict[str, Callable[[str, Setting], Candidate]] = {
    **{name: partial(_kivi, shape=shape) for name, shape in KIVI.items()},
    "per-token-8": partial(_per_token, bits=8, group=64),
    "per-token-4": partial(_per_token, bits=4, group=64),
    "per-token-2": partial(_per_token, bits=2, group=64),
    "fp8-e4m3": _fp8,
    "int8": partial(_static, kind="int8", bits=8, per_channel=False),
    "ort-int8": partial(_static, kind="onnxruntime", bits=8, per_channel=True),
    "ort-int4": partial(_static, kind="onnxruntime", bits=4, per_channel=True),
    "llama-q8_0": partial(_llama_cpp, format_=formats.q8_0, bits=8),
    "llama-q4_0": partial(_llama_cpp, format_=formats.q4_0, bits=4),
    "hqq-4": partial(_transformers, backend="hqq", bits=4),
    "hqq-2": partial(_transformers, backend="hqq", bits=2),
    "quanto-4": partial(_transformers, backend="quanto", bits=4),
    "quanto-2": partial(_transformers, backend="quanto", bits=2),
}
"""Peers by name."""

PACKAGES = {
    "hqq-4": "hqq",
    "hqq-2": "hqq",
    "quanto-4": "optimum.quanto",
    "quanto-2": "optimum.quanto",
}
"""Modules that real peers need."""


def available_peers() -> tuple[str, ...]:
    """Return the peers that run here: those whose packages are installed."""
    return tuple(name for name in PEERS if is_installed(PACKAGES.get(name, "torch")))


def make_peer(name: str, setting: Setting) -> Candidate:
    """Return a peer.

    Args:
        name: Key of `PEERS`.
        setting: What it is made for.

    Raises:
        GearError: `MISSING_DEPENDENCY` where the package of a real peer is not installed.
    """
    return PEERS[name](name, setting)


def _largest(x_BHTD: Tensor) -> Tensor:
    return x_BHTD.abs().amax(dim=(0, 2), keepdim=True)


def _through(x_BHTD: Tensor, start: int, end: int, format_: Format) -> Tensor:
    """Return the tokens with those from `start` to `end` replaced by what the format holds."""
    changed = x_BHTD.clone()
    changed[:, :, start:end] = format_(x_BHTD[:, :, start:end].float()).to(x_BHTD.dtype)
    return changed
