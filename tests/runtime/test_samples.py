"""The samples run on any engine folder."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from gear_trt.runtime.manifest import MANIFEST_FILE
from tests.export import decoders

SAMPLES = Path(__file__).parents[2] / "samples"


def run_sample(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(SAMPLES / name), run_name="__main__")


def test_quickstart(toy_folder, monkeypatch, capsys):
    run_sample(monkeypatch, "01_quickstart_decode.py", str(toy_folder), "Hello?")
    printed = capsys.readouterr().out
    assert "tokens/s" in printed
    assert "compression:" in printed


def test_quickstart_says_how_to_call_it(monkeypatch):
    with pytest.raises(SystemExit, match="ENGINE_FOLDER"):
        run_sample(monkeypatch, "01_quickstart_decode.py")


def test_transformers_generate(tmp_path, monkeypatch, capsys):
    folder = decoders.save_checkpoint(decoders.llama(), tmp_path / "model")
    run_sample(monkeypatch, "02_transformers_generate.py", str(folder), "t3 t4 t5")
    printed = capsys.readouterr().out
    assert "t3 t4 t5" in printed
    assert "compression:" in printed


def test_transformers_generate_says_how_to_call_it(monkeypatch):
    with pytest.raises(SystemExit, match="MODEL_FOLDER"):
        run_sample(monkeypatch, "02_transformers_generate.py")


def test_many_requests(toy_folder, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(toy_folder, tmp_path / "engine")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["model"]["max_context"] = 2048  # a token per byte
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    run_sample(monkeypatch, "04_many_requests.py", str(folder), "Who?", "What?", "Where?")
    printed = capsys.readouterr().out
    assert all(question in printed for question in ("Who?", "What?", "Where?"))
    found = re.search(r"(\d+) prompt tokens computed, (\d+) found in the cache", printed)
    assert found
    computed, shared = map(int, found.groups())
    assert shared > computed


def test_many_requests_says_how_to_call_it(monkeypatch):
    with pytest.raises(SystemExit, match="ENGINE_FOLDER"):
        run_sample(monkeypatch, "04_many_requests.py")


def test_readme_names_every_sample():
    readme = (SAMPLES / "README.md").read_text()
    assert all(path.name in readme for path in SAMPLES.glob("*.py"))
