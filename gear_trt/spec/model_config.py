"""The compression configs of a model: one for all layers, and what single layers change."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Self

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec.config import CompressionConfig

SHARED_FIELDS = ("chunk", "sinks")
"""Equal in all layers: they place tokens in pages, and one page table serves every layer."""
BOTH_SIDES = "bits"
"""Shorthand for `key_bits` and `value_bits`."""
LAYER_FIELDS = (
    BOTH_SIDES,
    *(name for name in CompressionConfig.model_fields if name not in SHARED_FIELDS),
)
"""What a layer may have for itself."""

_LAYERS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class LayerRule:
    """Fields that some layers have for themselves.

    Attributes:
        layers: Indices.
        fields: Values of `CompressionConfig`, without shorthands.
        origin: How the user wrote it, for messages.
    """

    layers: range
    fields: Mapping[str, int]
    origin: str

    @classmethod
    def of(cls, layers: str, fields: Mapping[str, int], origin: str) -> Self:
        """Build a rule.

        Args:
            layers: `3`, or `0-3` with both ends.
            fields: Values by name, `bits` for both sides.
            origin: How the user wrote it.

        Raises:
            GearError: `BAD_CONFIG` for wrong layers or a field that no layer has for itself.
        """
        found = _LAYERS.fullmatch(layers)
        first, last = (int(end or found[1]) for end in found.groups()) if found else (1, 0)
        if last < first:
            raise _bad(f"{origin}: '{layers}' names no layers", "write 3, or 0-3 with both ends")
        for name in fields:
            _check_name(name, origin)
        return cls(range(first, last + 1), _without_shorthand(fields, origin), origin)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `0-3:key_bits=8,rank=2`, as a command line has it.

        Raises:
            GearError: `BAD_CONFIG`.
        """
        origin = f"--layer {text}"
        layers, colon, assignments = text.partition(":")
        fields: dict[str, int] = {}
        for assignment in assignments.split(","):
            name, equals, value = assignment.partition("=")
            if not colon or not equals:
                raise _bad(f"{origin}: no field is set", "write for instance 0-3:key_bits=8,rank=2")
            if name in fields:
                raise _set_twice(origin, name)
            fields[name] = _integer(value, name, origin)
        return cls.of(layers, fields, origin)


@dataclass(frozen=True)
class ModelConfig:
    """How the caches of a model's layers are compressed.

    Attributes:
        base: Config of all layers without a rule.
        special: Layers with rules, in order, and their config.
    """

    base: CompressionConfig
    special: tuple[tuple[range, CompressionConfig], ...] = ()

    @classmethod
    def of(cls, base: CompressionConfig, *rule_sets: Sequence[LayerRule]) -> Self:
        """Apply rules to a config.

        Args:
            base: Config of all layers.
            *rule_sets: Of which a later one overrides an earlier one; inside of a set, no field of
                a layer may be set twice.

        Raises:
            GearError: `BAD_CONFIG`.
        """
        for rules in rule_sets:
            _check_overlaps(rules)
        every = [rule for rules in rule_sets for rule in rules]
        edges = {edge for rule in every for edge in (rule.layers.start, rule.layers.stop)}
        special = []
        for start, stop in pairwise(sorted(edges)):
            active = [rule for rule in every if start in rule.layers]
            if active:
                special.append((range(start, stop), _applied(base, active)))
        return cls(base, tuple(special))

    @classmethod
    def of_each(cls, configs: Sequence[CompressionConfig]) -> Self:
        """Return the most frequent config, and what runs of layers have instead: undo `of_layers`.

        Args:
            configs: Of every layer; one at least.
        """
        base = Counter(configs).most_common(1)[0][0]
        special = []
        for config, run in groupby(range(len(configs)), configs.__getitem__):
            layers = list(run)
            if config != base:
                special.append((range(layers[0], layers[-1] + 1), config))
        return cls(base, tuple(special))

    def of_layers(self, count: int) -> tuple[CompressionConfig, ...]:
        """Return the config of every layer of a model.

        Raises:
            GearError: `BAD_CONFIG` where a rule names a layer that the model does not have.
        """
        configs = [self.base] * count
        for layers, config in self.special:
            if layers.stop > count:
                raise _bad(
                    f"a config is set for layer {layers.stop - 1}, and the model has layers 0 to "
                    f"{count - 1}",
                    "correct the layers of --layer or of the config file",
                )
            configs[layers.start : layers.stop] = [config] * len(layers)
        return tuple(configs)


def check_shared(configs: Iterable[CompressionConfig]) -> None:
    """Check what all layers of a model must have in common.

    Raises:
        ValueError: They differ in one of `SHARED_FIELDS`.
    """
    every = list(configs)
    for name in SHARED_FIELDS:
        values = sorted({getattr(config, name) for config in every})
        if len(values) > 1:
            raise ValueError(f"layers differ in {name}: {', '.join(map(str, values))}")


def layer_ranges(layers: Sequence[int]) -> str:
    """Return ascending indices as people write them: `0-3, 7`."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _applied(base: CompressionConfig, rules: Sequence[LayerRule]) -> CompressionConfig:
    fields = base.model_dump()
    for rule in rules:
        fields |= rule.fields
    return CompressionConfig.checked(fields, where=rules[-1].origin)


def _check_overlaps(rules: Sequence[LayerRule]) -> None:
    for index, rule in enumerate(rules):
        for earlier in rules[:index]:
            first = max(rule.layers.start, earlier.layers.start)
            common = [name for name in rule.fields if name in earlier.fields]
            if common and first < min(rule.layers.stop, earlier.layers.stop):
                raise _bad(
                    f"{common[0]} of layer {first} is set twice: by {earlier.origin} and by "
                    f"{rule.origin}",
                    "let the layers of the two not overlap",
                )


def _check_name(name: str, origin: str) -> None:
    if name in SHARED_FIELDS:
        raise _bad(
            f"{origin}: {name} must be the same in all layers, which share one page table",
            f"set {name} for the whole model",
        )
    if name not in LAYER_FIELDS:
        raise _bad(f"{origin}: unknown field '{name}'", f"the fields are {', '.join(LAYER_FIELDS)}")


def _without_shorthand(fields: Mapping[str, int], origin: str) -> dict[str, int]:
    expanded = {name: value for name, value in fields.items() if name != BOTH_SIDES}
    if BOTH_SIDES in fields:
        for side in ("key_bits", "value_bits"):
            if side in fields:
                raise _set_twice(origin, side)
            expanded[side] = fields[BOTH_SIDES]
    return expanded


def _integer(text: str, name: str, origin: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _bad(
            f"{origin}: {name} is '{text}', which is no integer", "see `gear-export --help`"
        ) from None


def _set_twice(origin: str, name: str) -> GearError:
    return _bad(f"{origin}: {name} is set twice", "set it once")


def _bad(message: str, hint: str) -> GearError:
    return GearError(ErrorCode.BAD_CONFIG, message, hint=hint)
