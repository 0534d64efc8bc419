"""`gear-export` as a process: start-up time, Ctrl-C, a full disk."""

import os
import resource
import signal
import subprocess
import sys
import time

import onnx
import pytest

from gear_trt.errors import ExitStatus
from tests.export import text_graphs as text

RUN = "from gear_trt.cli.export import app; app()"
HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "transformers"}
HELP_SECONDS = 0.6
SLEEP_AFTER_WRITING = f"""
import time
from gear_trt.export.build import onnxruntime
onnxruntime.verify_written = lambda *_: time.sleep(60)
{RUN}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(text.written_out(), path)
    return path


# A test runner that ignores Ctrl-C (as one in the background does) passes that on to its children.
HEED_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def start(*arguments, code=RUN, **options):
    command = [sys.executable, "-c", f"{HEED_CTRL_C}\n{code}", *map(str, arguments)]
    return subprocess.Popen(
        [*command, "--max-context", str(text.CONTEXT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_help_imports_nothing_heavy():
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", RUN, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.split("|")[-1].strip() for line in run.stderr.splitlines() if "|" in line}
    assert not HEAVY & imported


def help_seconds():
    """Processor time of `gear-export --help`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", RUN, "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_takes_little_processor_time():
    best = min(help_seconds() for _ in range(3))  # neighbours in the caches make it longer
    assert best <= HELP_SECONDS


def interrupt(process):
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitStatus.INTERRUPTED
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors


def test_ctrl_c_while_reading(tmp_path):
    os.mkfifo(tmp_path / "endless.onnx")
    process = start(tmp_path / "endless.onnx", "-o", tmp_path / "engine")
    assert process.stderr.readline().startswith("reading")
    interrupt(process)
    assert names(tmp_path) == ["endless.onnx"]


def test_ctrl_c_when_the_weights_are_written(model, tmp_path):
    process = start(model, "-o", tmp_path / "engine", code=SLEEP_AFTER_WRITING)
    while not list(tmp_path.glob(".engine.*/model.onnx")):
        assert process.poll() is None
        time.sleep(0.05)
    interrupt(process)
    assert names(tmp_path) == []


def test_a_full_disk_leaves_nothing(model, tmp_path):
    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    process = start(model, "-o", tmp_path / "engine", preexec_fn=limit_files)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitStatus.ENVIRONMENT
    assert "error[E603]: cannot write" in errors
    assert "Traceback" not in errors
    assert names(tmp_path) == []
