"""Every command and every Python block of the READMEs runs as it is written."""

import shutil
import sys
from contextlib import ExitStack

import pytest

from tests.e2e.readme import REPOSITORY, blocks, commands, run, running
from tests.export import decoders

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with the files that the READMEs speak of: tiny models."""
    desk = tmp_path_factory.mktemp("desk")
    checkpoint = decoders.save_checkpoint(decoders.llama(), desk / "folder")
    (checkpoint / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    model = decoders.save_genai(checkpoint, desk / "genai")
    for file in model.parent.iterdir():
        if file.is_file():
            shutil.move(file, desk / file.name)
    (desk / "MODEL").symlink_to(checkpoint)
    (desk / "samples").symlink_to(REPOSITORY / "samples")
    return desk


@pytest.mark.parametrize("readme", ["README.md", "samples/README.md"])
def test_every_command_runs(readme, desk, gguf_command):
    written = commands(readme)
    assert written
    with ExitStack() as servers:
        for words in written:
            if words == gguf_command:
                continue  # the fixture has run it: it takes a minute
            if words[0] == "gear-export" and "--dry-run" not in words:
                shutil.rmtree(desk / words[words.index("-o") + 1], ignore_errors=True)
            if words[-1] == "&":
                servers.enter_context(running(words[:-1], desk))
            else:
                run(words, desk)


def test_every_python_block_runs(desk):
    shutil.rmtree(desk / "out", ignore_errors=True)
    run(["gear-export", "folder", "-o", "out"], desk)
    code = blocks("README.md", "python")
    assert code
    for block in code:
        run([sys.executable, "-c", block], desk)
