"""TensorRT and TensorRT-RTX as Python modules."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gear_trt.errors import ErrorCode, GearError

_MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""By name of the library: the modules that bring it, the first one preferred."""


def import_library(name: str) -> Any:  # noqa: ANN401 - a binding
    """Return the module of a library.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.

    Raises:
        GearError: `MISSING_DEPENDENCY`.
    """
    for module in _MODULES[name]:
        try:
            return import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise _missing(name, str(error)) from None
        except (ImportError, OSError) as error:
            raise _missing(name, str(error)) from None
    raise _missing(name, "not installed")


def _missing(name: str, why: str) -> GearError:
    package = name.replace("_", "-")
    return GearError(
        ErrorCode.MISSING_DEPENDENCY,
        f"{package} cannot be used: {why}",
        hint=f"pip install {package}",
    )
