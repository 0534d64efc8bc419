"""The commands and code blocks of the READMEs, and how tests run them."""

import os
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
OWN_TESTS = ("make",)
"""`make demo` and `make test`: these tests are part of what they run."""


def blocks(readme, *languages):
    text = (REPOSITORY / readme).read_text()
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(readme):
    lines = "".join(blocks(readme, "sh", "bash")).splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words and words[0] not in OWN_TESTS]


def run(words, folder):
    """Run a command as a user would who has installed gear_trt and stands in `folder`."""
    result = subprocess.run(
        words, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}"


@contextmanager
def running(words, folder):
    """Run a server while the block lasts; it is ready when it prints its first line."""
    with subprocess.Popen(
        words, cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout.readline(), f"{shlex.join(words)} has ended"
            yield
        finally:
            server.terminate()


def _environment():
    bin_folder = Path(sys.executable).parent
    return {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
