"""The library that `make cuda` builds, and the errors of `gear_trt.tensorrt`."""

import subprocess

import pytest

from gear_trt import tensorrt
from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import layout_hash
from gear_trt.tensorrt import plugin


@pytest.fixture
def named(monkeypatch):
    """Names a library by the environment variable, as users do."""

    def name(path):
        monkeypatch.setenv(plugin.LIBRARY_VARIABLE, str(path))
        plugin._library.cache_clear()

    yield name
    plugin._library.cache_clear()


class Registry:
    """Of a TensorRT that refuses every library."""

    all_creators = ()

    def load_library(self, plugin_path):
        return None


def test_only_what_others_look_up_is_exported(cuda_library):
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", cuda_library], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[-1] for line in listed.splitlines()} == {
        "getCreators",
        "setLoggerFinder",
        "gear_tensorrt_layout_hash",
        "gear_tensorrt_build_info",
        "gear_tensorrt_status",
    }


def test_it_needs_neither_cuda_nor_tensorrt_libraries(cuda_library):
    listed = subprocess.run(["readelf", "-d", cuda_library], capture_output=True, text=True)
    needed = [line for line in listed.stdout.splitlines() if "NEEDED" in line]
    assert needed
    assert not [
        line for line in needed if "cuda" in line or "nvinfer" in line or "tensorrt" in line
    ]


def test_it_says_what_it_is(cuda_library, named):
    named(cuda_library)
    info = tensorrt.build_info()
    assert info["layout_hash"] == layout_hash()
    assert info["compiler"].startswith("nvcc ")
    assert info["version"]


def test_a_library_that_is_not_there(tmp_path, named):
    named(tmp_path / "none.so")
    with pytest.raises(GearError, match=r"no TensorRT plugin library at .*none\.so") as caught:
        tensorrt.load(Registry())
    assert caught.value.code is ErrorCode.MISSING_LIBRARY
    assert plugin.LIBRARY_VARIABLE in caught.value.hint


def test_a_file_that_is_no_library(tmp_path, named):
    (tmp_path / "text.so").write_text("text")
    named(tmp_path / "text.so")
    with pytest.raises(GearError, match="cannot load") as caught:
        tensorrt.load(Registry())
    assert caught.value.code is ErrorCode.MISSING_LIBRARY


def test_a_library_of_another_layout(emulated_library, named, monkeypatch):
    named(emulated_library)
    monkeypatch.setattr("gear_trt.c_api.layout_hash", lambda: "0123456789abcdef")
    with pytest.raises(GearError, match="this package has 0123456789abcdef") as caught:
        tensorrt.load(Registry())
    assert caught.value.code is ErrorCode.LAYOUT_MISMATCH


def test_a_tensorrt_that_refuses_the_library(emulated_library, named):
    named(emulated_library)
    with pytest.raises(GearError, match="TensorRT refuses the plugin library") as caught:
        tensorrt.load(Registry())
    assert "10.9" in caught.value.hint
