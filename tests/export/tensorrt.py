"""What tests of TensorRT engines need: TensorRT-RTX, and the plugins that `make cuda` builds."""

import importlib.util
import os
from pathlib import Path

import pytest

from gear_trt.tensorrt.plugin import LIBRARY_NAME, LIBRARY_VARIABLE
from tests.cuda.build import CUDA_BUILD


def plugin_library():
    """Path of the plugin library; skips where it, or TensorRT-RTX, is not there."""
    if importlib.util.find_spec("tensorrt_rtx_libs") is None:
        pytest.skip("TensorRT-RTX is not installed: pip install 'gear-trt[rtx]'")
    built = CUDA_BUILD / "cuda" / LIBRARY_NAME
    library = Path(os.environ.get(LIBRARY_VARIABLE, built))
    if not library.is_file():
        pytest.skip(f"{LIBRARY_NAME} was not built: run `make cuda`")
    return library
