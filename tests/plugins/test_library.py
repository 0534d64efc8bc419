"""Finding, checking and choosing: everything about the library but its results."""

import os
import subprocess
import sys

import pytest

from gear_trt import c_api, native
from gear_trt.errors import ErrorCode, GearError
from gear_trt.spec import layout_hash
from tests.plugins.checks import INSTRUCTION_SETS


@pytest.fixture
def fresh_library():
    """Load the library anew in the test, and again after it."""
    native._library.cache_clear()
    yield
    native._library.cache_clear()


def test_build_info_says_what_was_built():
    info = native.build_info()
    assert info["layout_hash"] == layout_hash()
    assert info["version"]
    assert info["compiler"]
    assert info["instruction_sets"][0] == "scalar"


def test_the_best_instruction_set_is_the_default():
    script = "from gear_trt import native; print(native.instruction_set())"
    environment = {key: value for key, value in os.environ.items() if key != "GEAR_CPU"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == native.build_info()["instruction_sets"][-1]


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_gear_cpu_chooses_the_instruction_set(name):
    if name not in native.build_info()["instruction_sets"]:
        pytest.skip(f"this machine has no {name}")
    run = subprocess.run(
        [sys.executable, "-c", "from gear_trt import native; print(native.instruction_set())"],
        env={**os.environ, "GEAR_CPU": name},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == name


def test_a_wrong_gear_cpu_is_an_error_that_names_the_right_ones():
    script = (
        "import numpy as np; from gear_trt import native; from gear_trt.spec import *;"
        "rows = np.zeros((64, 64), np.float16);"
        "native.compress_page(rows, rows, CompressionConfig())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "GEAR_CPU": "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "GEAR_CPU: unknown instruction set 'sse9', choose one of: scalar" in run.stderr


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="unknown instruction set 'neon9'"):
        native.use_instruction_set("neon9")


def test_a_missing_library_says_how_to_get_one(monkeypatch, fresh_library, tmp_path):
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(tmp_path / "libgear.so"))
    with pytest.raises(GearError, match="no kernel library at") as caught:
        native.build_info()
    assert caught.value.code is ErrorCode.MISSING_LIBRARY
    assert native.LIBRARY_VARIABLE in caught.value.hint


def test_a_file_that_is_no_library_is_refused(monkeypatch, fresh_library, tmp_path):
    path = tmp_path / "libgear.so"
    path.write_bytes(b"not a library")
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(path))
    with pytest.raises(GearError, match="cannot load") as caught:
        native.build_info()
    assert caught.value.code is ErrorCode.MISSING_LIBRARY
    assert "pip install" in caught.value.hint


def test_a_library_of_another_layout_is_refused(monkeypatch, fresh_library):
    monkeypatch.setattr(c_api, "layout_hash", lambda: "0123456789abcdef")
    with pytest.raises(GearError, match="0123456789abcdef") as caught:
        native.build_info()
    assert caught.value.code is ErrorCode.LAYOUT_MISMATCH


def test_only_the_interface_is_exported():
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(native.library_path())],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    assert all(name.startswith("gear_") or name == "RegisterCustomOps" for name in names)
