"""Which of our configs the quality benchmark measures."""

from __future__ import annotations

from gear_trt.bench.grid import config_name, parse_config
from gear_trt.eval.peers import KIVI, kivi_config
from gear_trt.spec import PRESETS, CompressionConfig

FRONTIER = (
    *(name for name in PRESETS if name != "exact"),
    "k4v4+key_bits=8,value_bits=8",
    "k4v4+value_bits=3",
    "k3v2+value_bits=3",
    "k3v2+group_size=64",
)
"""Presets, and what fills the gaps between them."""
UNSCALED = ("k4v4", "k3v2", "near-lossless", "balanced", "small", "tiny")
"""Those that are measured without key scales as well."""
BUFFERS = (64, 128)
"""Newest tokens that peers keep uncompressed, at most: as many as pages of ours hold."""

WIDTHS = (2, 3, 4)
BASES = {
    "as published": ("paper-2bit", {"rank": 4, "outliers": 2}),
    "with rotation, sinks and 8-bit metadata": ("k2v2", {"rank": 2, "outliers": 2}),
}
"""What the parts of GEAR are added to: a preset whose bits are varied, and the parts' sizes."""
CODES = "codes"
PARTS: dict[str, tuple[str, ...]] = {
    CODES: (),
    "codes + low rank": ("rank",),
    "codes + outliers": ("outliers",),
    "all three": ("rank", "outliers"),
}
LADDER = ((2, 2), (3, 2), (3, 3), (4, 3), (4, 4), (8, 8))
"""Bits of K and V of codes without any correction: what the same bytes buy without the parts."""


def variant(base: str, key_bits: int, value_bits: int, part: str = CODES) -> CompressionConfig:
    """Return one of `BASES` with these bits and one of `PARTS`."""
    preset, sizes = BASES[base]
    chosen = {name: sizes[name] if name in PARTS[part] else 0 for name in sizes}
    return CompressionConfig.preset(preset, key_bits=key_bits, value_bits=value_bits, **chosen)


def part_configs() -> list[str]:
    """Return the parts at every width, and the ladder, but what is measured under other names."""
    configs = [variant(base, *bits) for base in BASES for bits in LADDER]
    configs += [
        variant(base, width, width, part) for base in BASES for width in WIDTHS for part in PARTS
    ]
    known = [parse_config(name).config for name in FRONTIER]
    known += [kivi_config(*shape) for shape in KIVI.values()]
    return [config_name(config) for config in dict.fromkeys(configs) if config not in known]
