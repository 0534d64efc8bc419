"""Every command and every Python block of the READMEs runs as it is written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export import decoders

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
OWN_TESTS = ("make",)
"""`make demo` and `make test`: this test is part of what they run."""


def blocks(readme, *languages):
    text = (REPOSITORY / readme).read_text()
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(readme):
    lines = "".join(blocks(readme, "sh", "bash")).splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words and words[0] not in OWN_TESTS]


@pytest.fixture(scope="module")
def desk(gguf, tmp_path_factory):
    """A folder with the files that the READMEs speak of: two tiny models and a real GGUF."""
    desk = tmp_path_factory.mktemp("desk")
    checkpoint = decoders.save_checkpoint(decoders.llama(), desk / "folder")
    model = decoders.save_genai(checkpoint, desk / "genai")
    for file in model.parent.iterdir():
        if file.is_file():
            shutil.move(file, desk / file.name)
    (desk / "model.gguf").symlink_to(gguf)
    (desk / "MODEL").symlink_to(checkpoint)
    (desk / "samples").symlink_to(REPOSITORY / "samples")
    return desk


def run(words, desk):
    if words[0] == "gear-export" and "--dry-run" not in words:
        shutil.rmtree(desk / words[words.index("-o") + 1], ignore_errors=True)
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        words, cwd=desk, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("readme", ["README.md", "samples/README.md"])
def test_every_command_runs(readme, desk):
    written = commands(readme)
    assert written
    for words in written:
        run(words, desk)


def test_every_python_block_runs(desk):
    run(["gear-export", "folder", "-o", "out"], desk)
    code = blocks("README.md", "python")
    assert code
    for block in code:
        run([sys.executable, "-c", block], desk)
