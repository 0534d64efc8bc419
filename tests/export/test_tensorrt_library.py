"""Which TensorRT is imported, and which is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gear_trt.errors import ErrorCode, GearError
from gear_trt.tensorrt.library import Flavour, import_tensorrt, loader_environment

TENSORRT, RTX = Flavour.TENSORRT, Flavour.RTX


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Pretend that modules are installed, and nothing else of TensorRT."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.startswith("tensorrt")]:
        monkeypatch.delitem(sys.modules, name)

    def install(**versions):
        for name, version in versions.items():
            (tmp_path / f"{name}.py").write_text(f"__version__ = {version!r}")

    yield install
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", None)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("versions", "wanted", "expected"),
    [
        ({"tensorrt": "10.9.0.34"}, None, TENSORRT),
        ({"tensorrt_bindings": "11.4.0.106"}, None, TENSORRT),
        ({"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}, None, TENSORRT),
        ({"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}, RTX, RTX),
        ({"tensorrt_rtx_bindings": "1.7.1.116"}, None, RTX),
    ],
)
def test_which_is_taken(installed, versions, wanted, expected):
    installed(**versions)
    found = import_tensorrt(wanted)
    assert found.flavour is expected
    assert found.version == found.module.__version__ in versions.values()


@pytest.mark.parametrize(
    ("versions", "wanted", "message"),
    [
        ({}, None, "neither tensorrt nor tensorrt-rtx is installed"),
        ({"tensorrt": "11.4.0.106"}, RTX, "tensorrt-rtx is not installed"),
        ({"tensorrt_rtx": "1.7.1.116"}, TENSORRT, "tensorrt is not installed"),
        ({"tensorrt": "10.8.0.43"}, None, "tensorrt 10.8.0.43 is not supported: gear_trt needs "
         "10.9 or later, up to 11.x (older ones cannot load the plugin library)"),
        ({"tensorrt": "12.0.0.1"}, None, "tensorrt 12.0.0.1 is not supported"),
        ({"tensorrt_rtx": "1.6.2.30"}, None, "tensorrt-rtx 1.6.2.30 is not supported: gear_trt "
         "needs 1.7 or later, up to 1.x (1.4 to 1.6 refuse plugin nodes)"),
    ],
)  # fmt: skip
def test_what_is_refused(installed, versions, wanted, message):
    installed(**versions)
    with pytest.raises(GearError) as caught:
        import_tensorrt(wanted)
    assert caught.value.code is ErrorCode.MISSING_DEPENDENCY
    assert caught.value.message.startswith(message)
    assert caught.value.hint.startswith("pip install 'gear-trt[")


def test_a_module_without_its_libraries(installed, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: no such file')")
    with pytest.raises(GearError, match=r"tensorrt cannot be loaded: libnvinfer\.so\.11") as caught:
        import_tensorrt()
    assert caught.value.code is ErrorCode.MISSING_DEPENDENCY


def test_a_newer_one_is_tried(installed, caplog):
    installed(tensorrt="11.9.0.1")
    assert import_tensorrt().version == "11.9.0.1"
    assert "tensorrt 11.9.0.1 is newer than 11.4, the last one tried" in caplog.text


def test_the_loader_finds_the_library_of_the_rtx_parser():
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed")
    code = "import ctypes; ctypes.CDLL('libtensorrt_rtx.so')"
    with loader_environment(RTX) as environment:
        folder = Path(environment["LD_LIBRARY_PATH"].split(os.pathsep)[0])
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not folder.exists()


def test_tensorrt_needs_no_folder():
    with loader_environment(TENSORRT) as environment:
        assert dict(environment) == dict(os.environ)
