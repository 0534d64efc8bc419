"""The library that `make cuda` builds, as far as it can be looked at without a GPU."""

import ctypes
import json
import subprocess

import pytest

from gear_trt.spec import CompressionConfig, layout_hash
from tests.cuda.build import CUDA_BUILD

ARCHITECTURES = "80-real 86-real 89-real 90-real 100-real 120"


@pytest.fixture
def path():
    library = CUDA_BUILD / "cuda" / "libgear_cuda.so"
    if not library.is_file():
        pytest.skip("libgear_cuda.so was not built: run `make cuda`")
    return library


def test_it_loads_without_a_gpu_and_says_what_it_is(path):
    library = ctypes.CDLL(str(path))
    library.gear_cuda_build_info.restype = ctypes.c_char_p
    info = json.loads(library.gear_cuda_build_info())
    assert info["layout_hash"] == layout_hash()
    assert info["compiler"].startswith("nvcc ")
    assert info["architectures"] == ARCHITECTURES
    assert info["version"]


def test_only_the_interface_is_exported(path):
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert names == {
        "gear_cuda_layout_hash",
        "gear_cuda_build_info",
        "gear_cuda_workspace_bytes",
        "gear_cuda_attention",
        "gear_cuda_compress_workspace_bytes",
        "gear_cuda_compress_pages",
        "gear_cuda_status",
        "gear_cuda_onnxruntime_status",
        "RegisterCustomOps",
    }


def test_it_needs_no_cuda_library(path):
    listed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    needed = [line for line in listed.stdout.splitlines() if "NEEDED" in line]
    assert not [line for line in needed if "cuda" in line or "torch" in line or "nvinfer" in line]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rank", 9, "rank is 9, must be in 0..8"),
        ("chunk", 96, "chunk is 96, must be one of 64, 128"),
    ],
)
def test_what_the_host_knows_is_refused_without_a_gpu(name, value, message, path):
    library = ctypes.CDLL(str(path))
    members = [*{**CompressionConfig().model_dump(), name: value}.values(), 64]
    config = (ctypes.c_int32 * len(members))(*members)
    error = ctypes.create_string_buffer(200)
    nothing = ctypes.c_void_p()
    arguments = (nothing, nothing, 1, nothing, nothing, ctypes.c_size_t(0), nothing)
    status = library.gear_cuda_compress_pages(config, *arguments, error, ctypes.c_size_t(200))
    assert (status, error.value.decode()) == (1, message)
