"""What a benchmark is asked to measure: heads, counts and configs, as a user writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec.config import PRESETS, CompressionConfig
from gear_trt.spec.layout import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM

KILO = 1024

_T = TypeVar("_T")

_HEADS = re.compile(r"(\d+)/(\d+)x(\d+)")
_COUNT = re.compile(r"(\d+)([kK]?)")
_OVERRIDE = re.compile(r"(\w+)=(\d+)")


@dataclass(frozen=True)
class Heads:
    """Geometry of an attention layer, written N/HxD.

    Attributes:
        num_heads: N, query heads.
        num_kv_heads: H, KV heads; N is a multiple.
        head_dim: D, channels of one head.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        """Return what `parse_heads` reads."""
        return f"{self.num_heads}/{self.num_kv_heads}x{self.head_dim}"


@dataclass(frozen=True)
class Point:
    """One place of the grid: what all candidates are timed at.

    Attributes:
        heads: Geometry of the layer.
        context: Tokens that each sequence holds before the call.
        batch: B, sequences.
        new_tokens: S, tokens that each sequence appends: 1 is decode, more is prefill.
        threads: CPU threads of one call.
    """

    heads: Heads
    context: int
    batch: int
    new_tokens: int
    threads: int

    @property
    def tokens(self) -> int:
        """Tokens that each sequence holds after the call."""
        return self.context + self.new_tokens

    def __str__(self) -> str:
        """Return a line for people."""
        doing = "decode" if self.new_tokens == 1 else f"prefill of {self.new_tokens}"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"heads {self.heads}, context {self.context}, batch {self.batch}, {doing}, {threads}"


@dataclass(frozen=True)
class NamedConfig:
    """A compression config and the name that rows and tables give it."""

    name: str
    config: CompressionConfig


def grid(
    heads: Iterable[Heads],
    contexts: Iterable[int],
    batches: Iterable[int],
    new_tokens: Iterable[int],
    threads: Iterable[int],
) -> list[Point]:
    """Return every combination, in the order of the arguments."""
    return [Point(*place) for place in product(heads, contexts, batches, new_tokens, threads)]


def parse_heads(text: str) -> Heads:
    """Read `N/HxD`, for instance `32/8x128`.

    Raises:
        GearError: `BAD_REQUEST`.
    """
    match = _HEADS.fullmatch(text)
    if match is None:
        raise _refusal(f"heads '{text}' are not N/HxD", "write for instance 32/8x128")
    num_heads, num_kv_heads, head_dim = map(int, match.groups())
    if not num_kv_heads or not num_heads or num_heads % num_kv_heads:
        raise _refusal(
            f"heads '{text}': {num_heads} query heads cannot share {num_kv_heads} KV heads",
            "N must be a multiple of H, and both 1 or more",
        )
    if head_dim % HEAD_DIM_MULTIPLE or not 0 < head_dim <= MAX_HEAD_DIM:
        raise _refusal(
            f"heads '{text}': head_dim is {head_dim}",
            f"it must be a multiple of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM}",
        )
    return Heads(num_heads, num_kv_heads, head_dim)


def parse_counts(text: str, name: str, *, minimum: int = 1) -> tuple[int, ...]:
    """Read counts with commas between them; `k` means 1024.

    Args:
        text: For instance `512,4k`.
        name: What is counted, for error messages.
        minimum: Smallest count allowed.

    Raises:
        GearError: `BAD_REQUEST`.
    """
    return tuple(_unique(_count(item, name, minimum) for item in _items(text, name)))


def parse_names(text: str, name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Read names with commas between them, each one of `known`.

    Raises:
        GearError: `BAD_REQUEST`.
    """
    known = tuple(known)
    names = tuple(_unique(_items(text, name)))
    for item in names:
        if item not in known:
            raise _refusal(f"unknown {name} '{item}'", f"choose among: {', '.join(known)}")
    return names


def parse_config(text: str) -> NamedConfig:
    """Read a preset with overrides, for instance `k4v4+rank=2,outliers=2`.

    Raises:
        GearError: `BAD_REQUEST`, `UNKNOWN_PRESET`, or `BAD_CONFIG`.
    """
    preset, plus, changes = text.partition("+")
    overrides: dict[str, int] = {}
    for item in changes.split(",") if plus else ():
        match = _OVERRIDE.fullmatch(item)
        if match is None:
            raise _refusal(
                f"config '{text}': '{item}' is not field=number",
                "write PRESET+field=number,field=number, for instance k4v4+rank=2,outliers=2",
            )
        overrides[match[1]] = int(match[2])
    return NamedConfig(text, CompressionConfig.preset(preset, **overrides))


def config_name(config: CompressionConfig) -> str:
    """Return the shortest `PRESET+field=number,...` that means a config."""
    return min((_name_from(preset, config) for preset in PRESETS), key=len)


def _name_from(preset: str, config: CompressionConfig) -> str:
    base = CompressionConfig.preset(preset).model_dump()
    changed = {name: value for name, value in config.model_dump().items() if base[name] != value}
    changes = ",".join(f"{name}={value}" for name, value in changed.items())
    return f"{preset}+{changes}" if changes else preset


def _items(text: str, name: str) -> Iterator[str]:
    for item in text.split(","):
        if not item.strip():
            raise _refusal(f"{name} '{text}' has an empty entry", "write for instance a,b,c")
        yield item.strip()


def _count(text: str, name: str, minimum: int) -> int:
    match = _COUNT.fullmatch(text)
    if match is None:
        raise _refusal(f"{name} '{text}' is not a count", "write for instance 512 or 4k (4096)")
    count = int(match[1]) * (KILO if match[2] else 1)
    if count < minimum:
        raise _refusal(f"{name} is {count}", f"it must be {minimum} or more")
    return count


def _unique(items: Iterable[_T]) -> Iterator[_T]:
    yield from dict.fromkeys(items)


def _refusal(message: str, hint: str) -> GearError:
    return GearError(ErrorCode.BAD_REQUEST, message, hint=hint)
