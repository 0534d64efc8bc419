"""The plugin library `libgear_trt_plugins.so`.

No TensorRT module is imported: callers bring the plugin registry of theirs (`tensorrt`,
`tensorrt_lean`, `tensorrt_rtx`).
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from gear_trt import c_api
from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import GEAR_ATTENTION
from gear_trt.spec.ops import DOMAIN

LIBRARY_NAME = "libgear_trt_plugins.so"
LIBRARY_VARIABLE = "GEAR_TENSORRT_LIBRARY"
"""Environment variable: path of a `libgear_trt_plugins.so` to use in place of the installed one."""

ALIASES_VARIABLE = "GEAR_TENSORRT_ALIASES"
"""Environment variable: `1` while an engine is built whose builder has the preview feature
`ALIASED_PLUGIN_IO_10_03` on, so that the plugin declares which outputs are updated inputs. Builders
refuse the declaration without it. Undeclared, the state is updated in place all the same where
input and output are bound to one address (docs/adr/0013)."""

_REBUILD = "build it with nvcc: `CMAKE_ARGS=-DGEAR_CUDA=ON pip install -e .`"


class Registry(Protocol):
    """What is used of TensorRT's `IPluginRegistry` (`get_plugin_registry()`)."""

    @property
    def all_creators(self) -> Sequence[Any]:
        """Every plugin creator that is registered."""

    def load_library(self, plugin_path: str) -> object:
        """Register the creators of a library; None where TensorRT refuses."""


def library_path() -> Path:
    """Return the path of the plugin library, for instance for `plugins_to_serialize`.

    Raises:
        GearError: `MISSING_LIBRARY`.
    """
    return c_api.find(LIBRARY_VARIABLE, LIBRARY_NAME, what="TensorRT plugin library", hint=_REBUILD)


@cache
def _library() -> ctypes.CDLL:
    library = c_api.load(library_path(), "gear_tensorrt_layout_hash", hint=_REBUILD)
    library.gear_tensorrt_build_info.restype = ctypes.c_char_p
    library.gear_tensorrt_status.argtypes = c_api.ERROR_TEXT
    return library


def build_info() -> dict[str, Any]:
    """Return version, layout hash, compiler and architectures."""
    return dict(json.loads(_library().gear_tensorrt_build_info()))


def load(registry: Registry) -> None:
    """Make the plugins known to TensorRT; nothing happens where they are already.

    Args:
        registry: `get_plugin_registry()` of a TensorRT module, or a builder's or runtime's.

    Raises:
        GearError: `MISSING_LIBRARY` where the library is not there or TensorRT refuses it,
            `LAYOUT_MISMATCH`.
    """
    _library()
    if _is_registered(registry):
        return
    if registry.load_library(str(library_path())) is None or not _is_registered(registry):
        raise GearError(
            ErrorCode.MISSING_LIBRARY,
            f"TensorRT refuses the plugin library {library_path()}",
            hint="it needs TensorRT 10.9 or later, or TensorRT-RTX 1.7; TensorRT's log has more",
        )


def _is_registered(registry: Registry) -> bool:
    return any(
        creator.name == GEAR_ATTENTION.name and creator.plugin_namespace == DOMAIN
        for creator in registry.all_creators
    )


def raise_errors() -> None:
    """Report what was wrong with the data of layers that have run since the last time.

    It neither waits nor copies: wait for the engine's stream first. Layers of an engine that
    brought a copy of the library along (`plugins_to_serialize`) are not seen.

    Raises:
        ValueError: The first thing that a layer's kernels met and skipped: a length, slot or page
            id out of range, a value that is not finite.
    """
    c_api.checked(_library(), "gear_tensorrt_status")
