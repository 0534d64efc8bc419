"""The definition: config, page layout, op table. Everything else derives from here."""

from gear_trt.spec.config import DEFAULT_PRESET, PRESETS, CompressionConfig
from gear_trt.spec.layout import PageLayout, bits_per_element, layout_hash, page_layout
from gear_trt.spec.model_config import ModelConfig
from gear_trt.spec.ops import ACTIVATION_DTYPES, DOMAIN, GEAR_ATTENTION, OpSpec

__all__ = [
    "ACTIVATION_DTYPES",
    "DEFAULT_PRESET",
    "DOMAIN",
    "GEAR_ATTENTION",
    "PRESETS",
    "CompressionConfig",
    "ModelConfig",
    "OpSpec",
    "PageLayout",
    "bits_per_element",
    "layout_hash",
    "page_layout",
]
