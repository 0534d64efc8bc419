"""`plugins/tensorrt/abi.h` is what TensorRT's own headers declare."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.tensorrt.host import ROOT

RECORDED = Path(__file__).with_name("abi.txt")
"""What the probe printed with the headers of every release from TensorRT 10.3 to 11.1."""


def probe(folder, *include_folders):
    """What a compiler makes of the declarations."""
    program = folder / "probe"
    folders = [f"-I{ROOT / 'plugins'}", *(f"-isystem{path}" for path in include_folders)]
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-Wno-invalid-offsetof", *folders]
    source = Path(__file__).with_name("abi_probe.cpp")
    subprocess.run([*command, source, "-o", program], check=True)
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout


def official_headers():
    """Folders of TensorRT's headers, which TENSORRT_ROOT names, and of CUDA's."""
    root = os.environ.get("TENSORRT_ROOT")
    if not root:
        pytest.skip("TENSORRT_ROOT names no TensorRT with headers")
    headers = next(Path(root).rglob("NvInferRuntime.h"), None)
    if headers is None:
        pytest.skip(f"no NvInferRuntime.h under {root}")
    packages = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13"
    toolkits = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), packages]
    for toolkit in toolkits:
        if (toolkit / "include" / "cuda_runtime_api.h").is_file():
            return headers.parent, toolkit / "include"
    pytest.skip("TensorRT's headers need those of CUDA: CUDA_HOME names none")


def test_our_declarations_are_those_that_were_recorded(tmp_path):
    assert probe(tmp_path) == RECORDED.read_text()


def test_official_headers_declare_the_same(tmp_path):
    assert probe(tmp_path, *official_headers()) == RECORDED.read_text()
