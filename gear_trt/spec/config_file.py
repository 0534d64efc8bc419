"""Config files: a preset, fields and per-layer fields as TOML.

```toml
preset = "k4v4"
sinks = 8

[layers."0-3"]
key_bits = 8
```
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec.config import DEFAULT_PRESET, CompressionConfig
from gear_trt.spec.model_config import LayerRule, ModelConfig

PRESET_KEY = "preset"
LAYERS_KEY = "layers"


@dataclass(frozen=True)
class ConfigFile:
    """What a config file says.

    Attributes:
        preset: Name of the preset, or None.
        fields: Fields of all layers that replace the preset's.
        rules: Fields of single layers.
    """

    preset: str | None = None
    fields: Mapping[str, int] = field(default_factory=dict)
    rules: tuple[LayerRule, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a config file.

        Raises:
            GearError: `MISSING_FILE`, or `BAD_CONFIG` for a file that is no TOML or has wrong keys.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise GearError(
                ErrorCode.MISSING_FILE,
                f"{path} does not exist",
                hint="name a TOML file; see `gear-export --help`",
            ) from None
        except ValueError as error:  # no TOML, or no text
            raise _bad(path, f"it is no TOML: {error}") from None
        preset = content.pop(PRESET_KEY, None)
        if preset is not None and not isinstance(preset, str):
            raise _bad(path, f"{PRESET_KEY} is no name")
        layers = content.pop(LAYERS_KEY, {})
        if not isinstance(layers, dict):
            raise _bad(path, f'{LAYERS_KEY} is no table: write [{LAYERS_KEY}."0-3"]')
        for name in content:
            if name not in CompressionConfig.model_fields:
                raise _bad(path, f"unknown key '{name}'")
        return cls(preset, _integers(path, content), tuple(_rules(path, layers)))


def choose_config(
    file: ConfigFile,
    *,
    preset: str | None = None,
    fields: Mapping[str, int],
    rules: Sequence[LayerRule] = (),
) -> ModelConfig:
    """Put the config of a model together: what a command line says overrides what a file says.

    Args:
        file: The config file, empty where there is none.
        preset: Name of a preset; None means the file's, or the default one.
        fields: Fields of all layers.
        rules: Fields of single layers.

    Raises:
        GearError: `UNKNOWN_PRESET`, or `BAD_CONFIG`.
    """
    name = preset or file.preset or DEFAULT_PRESET
    base = CompressionConfig.preset(name, **{**file.fields, **fields})
    return ModelConfig.of(base, file.rules, rules)


def config_text(config: ModelConfig, comment: str = "") -> str:
    """Return the TOML of a config; every field of all layers is in it, so that no preset is.

    Args:
        config: What `ConfigFile.read` and `choose_config` shall give back.
        comment: Lines to begin with.
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    base = config.base.model_dump()
    lines += [f"{name} = {value}" for name, value in base.items()]
    for layers, special in config.special:
        last = layers.stop - 1
        key = str(layers.start) if last == layers.start else f"{layers.start}-{last}"
        lines += ["", f'[{LAYERS_KEY}."{key}"]']
        lines += [
            f"{name} = {value}"
            for name, value in special.model_dump().items()
            if value != base[name]
        ]
    return "\n".join(lines) + "\n"


def _rules(path: Path, layers: Mapping[str, Any]) -> list[LayerRule]:
    rules = []
    for key, fields in layers.items():
        origin = f'[{LAYERS_KEY}."{key}"]'
        if not isinstance(fields, dict):
            raise _bad(path, f"{key} in {LAYERS_KEY} is no table: write {origin}")
        rules.append(LayerRule.of(key, _integers(path, fields), f"{origin} of {path}"))
    return rules


def _integers(path: Path, fields: Mapping[str, Any]) -> dict[str, int]:
    for name, value in fields.items():
        if not isinstance(value, int):
            raise _bad(path, f"{name} is {value!r}, which is no integer")
    return {name: int(value) for name, value in fields.items()}


def _bad(path: Path, reason: str) -> GearError:
    return GearError(
        ErrorCode.BAD_CONFIG,
        f"{path} is not valid: {reason}",
        hint=f"its keys are {PRESET_KEY}, {LAYERS_KEY} and the compression flags of `gear-export "
        "--help`, with _ for -",
    )
