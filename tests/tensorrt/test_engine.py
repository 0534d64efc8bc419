"""Engines that TensorRT-RTX builds around the plugin, on machines without a GPU too."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from gear_trt.spec import CompressionConfig, layout_hash, page_layout
from gear_trt.tensorrt import plugin
from tests.tensorrt.host import ROOT


@pytest.fixture(scope="module")
def engines(cuda_library, tmp_path_factory):
    """What became of every variant of `rtx_builder`, and the folder of the engines."""
    found = find_spec("tensorrt_rtx_libs")
    if found is None:
        pytest.skip("TensorRT-RTX is not installed")
    folder = tmp_path_factory.mktemp("engines")
    (library,) = Path(found.origin).parent.glob("libtensorrt_rtx.so.*")
    (folder / "libtensorrt_rtx.so").symlink_to(library)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        plugin.LIBRARY_VARIABLE: str(cuda_library),
    }
    run = subprocess.run(
        [sys.executable, "-m", "tests.tensorrt.rtx_builder", folder],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), folder


def errors(result):
    return [text for severity, text in result["log"] if severity in ("ERROR", "INTERNAL_ERROR")]


@pytest.mark.parametrize("variant", ["plain", "preview", "declared"])
def test_an_engine_is_built(engines, variant):
    results, folder = engines
    assert errors(results[variant]) == []
    engine = (folder / variant).read_bytes()
    assert b"GearAttention" in engine
    assert layout_hash().encode() in engine


def test_builders_try_other_formats_and_are_told(engines):
    verbose = [text for severity, text in engines[0]["plain"]["log"] if severity == "VERBOSE"]
    assert any(
        text.startswith("GearAttention layer 3: query has tensor format") for text in verbose
    )


def test_a_declared_alias_needs_the_preview_feature(engines):
    """Why no alias is declared unless somebody asks for it."""
    result = engines[0]["declared-without-preview"]
    assert not result["is_built"]
    assert any("kALIASED_PLUGIN_IO_10_03 not enabled" in text for text in errors(result))


def test_a_wrong_shape_is_named_in_tensorrts_log(engines):
    result = engines[0]["wrong-pool"]
    assert not result["is_built"]
    words = page_layout(CompressionConfig(), 64).page_words
    expected = f"page_pool has shape [64, 2, 7], expected [num_pages, 2, {words}]"
    assert any(f"GearAttention layer 3: {expected}" in text for text in errors(result))
