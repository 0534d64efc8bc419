"""`import gear_trt` gives its public names and loads nothing heavy."""

import subprocess
import sys

import pytest

import gear_trt


def test_import_is_light():
    program = (
        "import sys, gear_trt; gear_trt.GearError;"
        "print(*{'numpy', 'onnx', 'onnxruntime', 'torch', 'transformers'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


def test_names():
    assert gear_trt.__all__ == dir(gear_trt)
    assert gear_trt.load.__module__ == "gear_trt.runtime.engine"
    assert gear_trt.CompressionConfig.preset("k4v4").key_bits == 4
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = gear_trt.no_such_name
