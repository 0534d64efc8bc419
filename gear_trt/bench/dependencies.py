"""Packages that only some measurements need."""

from __future__ import annotations

from importlib.util import find_spec

from gear_trt.errors import ErrorCode, GearError

INSTALL = {
    "onnxruntime": "pip install 'gear-trt[cpu]'",
    "matplotlib": "pip install 'gear-trt[plot]'",
    "llama_cpp": "pip install llama-cpp-python",
    "hqq": "pip install hqq",
    "lm_eval": "pip install lm-eval",
    "optimum.quanto": "pip install optimum-quanto",
}
"""How to install a module."""


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it is not imported."""
    parent = module.rpartition(".")[0]
    return (not parent or is_installed(parent)) and find_spec(module) is not None


def require(module: str) -> None:
    """Refuse to go on without a module.

    Raises:
        GearError: `MISSING_DEPENDENCY`.
    """
    if not is_installed(module):
        raise GearError(
            ErrorCode.MISSING_DEPENDENCY, f"{module} is not installed", hint=INSTALL[module]
        )
