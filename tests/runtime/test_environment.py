"""`gear doctor` says what a machine has and lacks; here also one with an imaginary GPU."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gear_trt import driver
from gear_trt.errors import ExitStatus
from gear_trt.spec import layout_hash
from tests.cuda.build import CUDA_BUILD
from tests.fake_driver import environment

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def doctor(**variables):
    run = subprocess.run(
        [Path(sys.executable).with_name("gear"), "doctor", "--json"],
        capture_output=True,
        text=True,
        env=environment(**variables),
        check=False,
    )
    assert run.returncode == ExitStatus.OK, run.stderr
    return {finding["name"]: finding for finding in json.loads(run.stdout)["findings"]}


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """Of a machine with a GPU, a driver and a compiler, whose libraries cannot be used."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "libgear_trt_plugins.so").write_text("no library")
    nvcc = folder / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.5, V13.5.37'\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    return doctor(
        GEAR_CUDA_LIBRARY="/no/such.so",
        GEAR_TENSORRT_LIBRARY=str(folder / "libgear_trt_plugins.so"),
        CUDACXX=str(nvcc),
    )


def test_a_gpu_is_named_with_what_its_driver_can(findings):
    gpu = findings["NVIDIA GPU"]["value"]
    assert gpu == "Imaginary B1, compute capability 9.0, 80 GB"
    assert findings["NVIDIA driver"]["value"].endswith("CUDA 13.2")


def test_what_the_gpu_lacks_has_a_remedy(findings):
    for backend in ("tensorrt", "onnxruntime-cuda"):
        finding = findings[f"backend {backend}"]
        assert finding["value"] is None
        assert "install" in finding["hint"]
        assert not finding["is_required"]
    assert "has no CUDA provider" in findings["backend onnxruntime-cuda"]["hint"]


def test_providers_are_listed(findings):
    assert "CPU" in findings["onnxruntime providers"]["value"].split(", ")


def test_a_library_that_is_missing_or_broken_is_named(findings):
    assert "/no/such.so" in findings["CUDA kernel library"]["hint"]
    assert "libgear_trt_plugins.so" in findings["TensorRT plugin library"]["hint"]


def test_the_compiler_that_a_build_would_use_is_named(findings):
    assert findings["nvcc"]["value"].endswith("/nvcc, 13.5.37")


def test_libraries_are_named_with_their_layout():
    library = CUDA_BUILD / "cuda" / "libgear_cuda.so"
    if not library.is_file():
        pytest.skip("libgear_cuda.so was not built: run `make cuda`")
    found = doctor(GEAR_CUDA_LIBRARY=str(library), CUDACXX="/no/such/nvcc")
    assert str(library) in found["CUDA kernel library"]["value"]
    assert layout_hash() in found["CUDA kernel library"]["value"]
    assert found["nvcc"]["value"] is None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23\n", "580.95.05"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release",
            "570.124.06",
        ),
        ("something else", None),
    ],
)
def test_version_of_the_driver(text, version, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "KERNEL_MODULE", tmp_path / "version")
    assert driver.driver_version() is None
    (tmp_path / "version").write_text(text)
    assert driver.driver_version() == version


def test_without_a_driver_there_is_nothing():
    assert driver.count_gpus() == 0
    assert driver.find_gpus() == []
    assert driver.cuda_version() is None
