"""The Python module of TensorRT or TensorRT-RTX: which is there, and in what version."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gear_trt.errors import ErrorCode, GearError

log = logging.getLogger(__name__)

Version = tuple[int, int]
"""Major and minor."""


class Flavour(StrEnum):
    """The two TensorRTs; their Python interfaces are alike."""

    TENSORRT = "tensorrt"
    RTX = "tensorrt-rtx"


@dataclass(frozen=True)
class _Product:
    """What differs between the two: names as pip's packages have them, versions with plugins."""

    modules: tuple[str, ...]
    install: str
    oldest: Version
    newest_tried: Version
    why_not_older: str


_PRODUCTS = {
    Flavour.TENSORRT: _Product(
        modules=("tensorrt", "tensorrt_bindings"),
        install="pip install 'gear-trt[gpu]'",
        oldest=(10, 9),
        newest_tried=(11, 4),
        why_not_older="older ones cannot load the plugin library",
    ),
    Flavour.RTX: _Product(
        modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
        install="pip install 'gear-trt[rtx]'",
        oldest=(1, 7),
        newest_tried=(1, 7),
        why_not_older="1.4 to 1.6 refuse plugin nodes",
    ),
}
_RTX_LIBRARIES = "tensorrt_rtx_libs"
_RTX_RUNTIME = "libtensorrt_rtx.so"


@dataclass(frozen=True)
class TensorRT:
    """An imported TensorRT.

    Attributes:
        flavour: Which of the two.
        module: Its Python module.
        version: As the module gives it, for instance `11.4.0.106`.
    """

    flavour: Flavour
    module: Any
    version: str


def import_tensorrt(flavour: Flavour | None = None) -> TensorRT:
    """Import TensorRT.

    Args:
        flavour: Which of the two; None takes the one that is installed, TensorRT before
            TensorRT-RTX.

    Raises:
        GearError: `MISSING_DEPENDENCY` where it is not installed, cannot be loaded, or is of a
            version that cannot run the plugin.
    """
    flavour = flavour or _installed()
    product = _PRODUCTS[flavour]
    name = _module_name(product)
    if name is None:
        raise _missing(f"{flavour} is not installed", product.install)
    try:
        module = import_module(name)
    except (ImportError, OSError) as error:  # a shared library of it is missing or damaged
        raise _missing(f"{flavour} cannot be loaded: {error}", product.install) from error
    _check_version(flavour, product, module.__version__)
    return TensorRT(flavour, module, module.__version__)


def _installed() -> Flavour:
    for flavour, product in _PRODUCTS.items():
        if _module_name(product) is not None:
            return flavour
    installs = " or ".join(product.install for product in _PRODUCTS.values())
    raise _missing("neither tensorrt nor tensorrt-rtx is installed", installs)


def _module_name(product: _Product) -> str | None:
    return next((name for name in product.modules if importlib.util.find_spec(name)), None)


def _check_version(flavour: Flavour, product: _Product, version: str) -> None:
    major, minor = (int(part) for part in version.split(".")[:2])
    oldest, newest = product.oldest, product.newest_tried
    if (major, minor) < oldest or major > newest[0]:
        raise _missing(
            f"{flavour} {version} is not supported: gear_trt needs {_text(oldest)} or later, up to "
            f"{newest[0]}.x ({product.why_not_older})",
            product.install,
        )
    if (major, minor) > newest:
        log.warning("%s %s is newer than %s, the last one tried", flavour, version, _text(newest))


def _text(version: Version) -> str:
    return ".".join(map(str, version))


def _missing(message: str, install: str) -> GearError:
    return GearError(ErrorCode.MISSING_DEPENDENCY, message, hint=install)


@contextmanager
def loader_environment(flavour: Flavour) -> Iterator[Mapping[str, str]]:
    """Yield the environment of a child process in which ONNX files can be parsed.

    TensorRT-RTX's parser opens `libtensorrt_rtx.so` by that name and aborts where there is none;
    pip's package has it under its versioned name only. So the child's loader is shown a folder
    with a link. Nothing less helps: the loader reads its path once, when a process starts, and a
    library that is loaded already is not found by a name that is not its own.

    Args:
        flavour: The TensorRT that the child will import.
    """
    environment = dict(os.environ)
    libraries = _rtx_libraries() if flavour is Flavour.RTX else []
    if not libraries:
        yield environment
        return
    with TemporaryDirectory(prefix="gear-tensorrt-") as folder:
        (Path(folder) / _RTX_RUNTIME).symlink_to(libraries[0])
        inherited = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (folder, inherited)))
        yield environment


def _rtx_libraries() -> list[Path]:
    """Return the runtime of pip's package, where that is how TensorRT-RTX was installed."""
    spec = importlib.util.find_spec(_RTX_LIBRARIES)
    folders = (spec.submodule_search_locations or []) if spec else []
    return [path for folder in folders for path in sorted(Path(folder).glob(f"{_RTX_RUNTIME}.*"))]
