"""The README's command builds a TensorRT-RTX engine of the real model, with no GPU at hand."""

import re

import pytest

from gear_trt.export.build.tensorrt import LOG_FILE
from gear_trt.export.report import ExportReport
from gear_trt.runtime.manifest import ENGINE_FILE, Manifest

pytestmark = pytest.mark.slow

LAYERS, PROFILES = 30, 2
GIGA = 1e9


def test_every_layer_of_both_profiles_is_the_plugin(tensorrt_library, real_engine):
    report = ExportReport.read(real_engine)
    manifest = Manifest.read(real_engine)
    build = report.tensorrt
    assert build.facts == manifest.tensorrt
    assert build.plugin_layers == LAYERS * PROFILES
    # TensorRT's own list of what is in the engine
    listed = re.findall(
        r"^Name: GearAttention\.(\d+)( \[profile 1\])?\S*, LayerType: custom",
        (real_engine / LOG_FILE).read_text(),
        re.MULTILINE,
    )
    assert len(listed) == len(set(listed)) == LAYERS * PROFILES
    assert {int(layer) for layer, _ in listed} == set(range(LAYERS))
    weights = report.file_bytes["model.onnx.data"]
    assert weights < build.engine_bytes == (real_engine / ENGINE_FILE).stat().st_size
    assert build.engine_bytes < 1.2 * weights
    assert build.peak_memory_bytes < 3 * GIGA
    assert (real_engine / build.facts.plugin).read_bytes() == tensorrt_library.read_bytes()
