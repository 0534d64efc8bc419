"""Eight billion parameters: memory, time and disk of an export stay small."""

import re
import subprocess
import sys
import time

import pytest

from gear_trt.runtime.manifest import MODEL_FILE, Manifest
from tests.export import large

GIGA = 1e9
CONTEXT = 128
"""Tokens; as many are run to measure keys, and the weights are what counts here."""
EXPORT = """
import re, sys
from pathlib import Path
from gear_trt.cli.export import app
try:
    app()
finally:
    print(re.search(r"VmHWM:.*", Path("/proc/self/status").read_text())[0], file=sys.stderr)
"""


def stored_bytes(folder):
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*"))


@pytest.mark.slow
def test_eight_billion_parameters(tmp_path):
    size = large.save_llama_8b(tmp_path)
    if stored_bytes(tmp_path) > GIGA:
        pytest.skip("the file system of the temporary folder has no sparse files")
    engine = tmp_path / "engine"
    command = [sys.executable, "-c", EXPORT, str(tmp_path / "model.onnx"), "-o", str(engine)]
    started = time.perf_counter()
    run = subprocess.run(
        [*command, "--max-context", str(CONTEXT)], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    assert run.returncode == 0, run.stderr
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", run.stderr)[1])
    assert size > 16e9
    assert peak < 4e9
    assert seconds < 120
    assert len(Manifest.read(engine).layers) == large.LAYERS
    assert (engine / MODEL_FILE).is_file()
    assert sum(path.stat().st_size for path in engine.iterdir()) > size
    assert stored_bytes(tmp_path) < GIGA
