"""What this machine has for gear_trt, and what to install where something is missing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from pydantic import BaseModel

from gear_trt import native
from gear_trt.driver import count_gpus
from gear_trt.errors import GearError

_REQUIRED_PACKAGES = ("gear-trt", "numpy", "onnx", "safetensors", "tokenizers", "transformers")
_INSTALL_CPU = "pip install 'gear-trt[cpu]'"
_INSTALL_GPU = "pip install 'gear-trt[gpu]'"


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
        _custom_op(),
        Finding(
            name="NVIDIA GPU",
            value=_gpus(),
            hint="none is needed: the CPU kernels run everywhere",
            is_required=False,
        ),
        Finding(name="tensorrt", value=_version("tensorrt"), hint=_INSTALL_GPU, is_required=False),
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


def _gpus() -> str | None:
    count = count_gpus()
    return f"{count} found" if count else None
