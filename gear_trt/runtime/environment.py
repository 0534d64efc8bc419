"""What this machine has for gear_trt, and what to install where something is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gear_trt import cuda, driver, native, tensorrt
from gear_trt.errors import GearError

_REQUIRED_PACKAGES = (
    "gear-trt", "numpy", "onnx", "safetensors", "tokenizers", "torch", "transformers",
)  # fmt: skip
_TENSORRTS = {
    "tensorrt": "pip install 'gear-trt[gpu]'",
    "tensorrt-rtx": "pip install 'gear-trt[rtx]'",
    "tensorrt-lean": "pip install tensorrt-lean; only tests need it",
}
"""How to install each."""
_TENSORRT_PARTS = ("", "-cu13", "-cu12", "-cu13-bindings", "-cu12-bindings")
"""Packages of one TensorRT; any of them tells its version."""
_INSTALL_CPU = "pip install 'gear-trt[cpu]'"
_NO_GPU = "none is needed: the CPU kernels run everywhere"


class Finding(BaseModel):
    """One thing that was looked for.

    Attributes:
        name: What.
        value: What was found; None where it is missing.
        hint: What to do where it is missing.
        is_required: Whether nothing works without it.
    """

    name: str
    value: str | None
    hint: str | None = None
    is_required: bool = True

    @property
    def is_fault(self) -> bool:
        """Whether something that is needed is missing."""
        return self.is_required and self.value is None


def examine() -> list[Finding]:
    """Look at the machine; nothing is changed and nothing is downloaded."""
    return [
        Finding(name="python", value=platform.python_version()),
        *(
            Finding(name=name, value=_version(name), hint=f"pip install {name}")
            for name in _REQUIRED_PACKAGES
        ),
        *_kernel_library(),
        Finding(
            name="onnxruntime",
            value=_version("onnxruntime") or _version("onnxruntime-gpu"),
            hint=_INSTALL_CPU,
        ),
        _providers(),
        _custom_op(),
        *_gpus(),
        *_gpu_software(),
        *_gpu_backends(),
        Finding(
            name="fastapi",
            value=_version("fastapi"),
            hint="pip install 'gear-trt[serve]' for `gear serve`",
            is_required=False,
        ),
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _kernel_library() -> list[Finding]:
    try:
        return [
            Finding(name="kernel library", value=str(native.library_path())),
            Finding(name="page layout", value=native.build_info()["layout_hash"]),
            Finding(name="instruction set", value=native.instruction_set()),
        ]
    except GearError as error:
        return [Finding(name="kernel library", value=None, hint=f"{error.message}: {error.hint}")]


def _providers() -> Finding:
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as ort
    except ImportError as error:
        return Finding(name="onnxruntime providers", value=None, hint=f"{error}: {_INSTALL_CPU}")
    names = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    return Finding(name="onnxruntime providers", value=", ".join(names))


def _custom_op() -> Finding:
    name = "custom op in onnxruntime"
    try:
        from gear_trt.runtime.onnxruntime import session_options

        session_options(threads=1)
    except GearError as error:
        return Finding(name=name, value=None, hint=error.hint)
    except ImportError as error:
        return Finding(name=name, value=None, hint=f"{error}: {_INSTALL_CPU}")
    return Finding(name=name, value="registered")


def _gpus() -> Iterator[Finding]:
    found = driver.find_gpus()
    if not found:
        yield _optional("NVIDIA GPU", None, _NO_GPU)
        return
    for gpu in found:
        size = f"{gpu.memory_bytes / 1e9:.0f} GB"
        what = f"{gpu.name}, compute capability {gpu.compute_capability}, {size}"
        yield _optional("NVIDIA GPU", what)
    loaded = f"{driver.driver_version() or 'of unknown version'}, CUDA {driver.cuda_version()}"
    yield _optional("NVIDIA driver", loaded)


def _gpu_software() -> Iterator[Finding]:
    """What only GPUs need: useful also where an engine is built for another machine's."""
    yield _optional(
        "nvcc", _nvcc(), "install the CUDA toolkit, or run `make cuda`, which installs it"
    )
    yield _library("CUDA kernel library", cuda.library_path, cuda.build_info)
    for name, install in _TENSORRTS.items():
        yield _optional(name, _tensorrt_version(name), install)
    yield _library("TensorRT plugin library", tensorrt.library_path, tensorrt.build_info)


def _gpu_backends() -> Iterator[Finding]:
    """Whether a GPU that is there can be used; what needs a folder is seen when one is loaded."""
    if not driver.count_gpus():
        return
    from gear_trt.runtime.choice import check_gpu_backends

    for name, refusal in check_gpu_backends():
        hint = None if refusal is None else f"{refusal.message}: {refusal.hint}"
        yield _optional(f"backend {name}", None if refusal else "can be used", hint)


def _optional(name: str, value: str | None, hint: str | None = None) -> Finding:
    return Finding(name=name, value=value, hint=hint, is_required=False)


def _library(
    name: str, path: Callable[[], Path], build_info: Callable[[], dict[str, Any]]
) -> Finding:
    try:
        info = build_info()
        what = f"{path()}, page layout {info['layout_hash']}, for {info['architectures']}"
        return _optional(name, what)
    except GearError as error:
        return _optional(name, None, f"{error.message}: {error.hint}")


def _nvcc() -> str | None:
    compiler = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if compiler is None:
        return None
    try:
        said = subprocess.run(  # noqa: S603 - the compiler that a build would use
            [compiler, "--version"], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return None
    release = re.search(r"\bV(\d+(?:\.\d+)+)", said)
    return f"{compiler}, {release[1]}" if release else None


def _tensorrt_version(name: str) -> str | None:
    found = (_version(name + part) for part in _TENSORRT_PARTS)
    return next((each for each in found if each is not None), None)
