"""`gear serve`: the process from its address to its end, and what it refuses to start with."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from typer.testing import CliRunner

from gear_trt.cli.main import app
from gear_trt.driver import count_gpus
from gear_trt.errors import ExitStatus
from gear_trt.serving import extra
from tests.runtime.folders import write_engine

GEAR = Path(sys.executable).with_name("gear")
SMALL = ("--threads", "1", "--max-cache", "24MiB", "--max-batch", "4", "--port", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engine") / "toy")


@contextmanager
def process(folder, *arguments, **environment):
    """Run `gear serve`; yields the process and its address."""
    command = [GEAR, "serve", folder, *SMALL, "--json", *arguments]
    environment = os.environ | environment
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        try:
            announced = json.loads(running.stdout.readline())
            assert announced["schema"] == "gear.serve/1"
            assert announced["model"] == "toy"
            yield running, announced["url"]
        finally:
            running.kill()


def refused(*arguments, status=ExitStatus.FAILED, **kwargs):
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)], **kwargs)
    assert result.exit_code == status
    return result.stderr


def test_answers_that_have_begun_end_before_the_process_does(folder):
    with (
        process(folder, GEAR_API_KEY="s3cret") as (running, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret", max_retries=0) as client,
    ):
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        stream = client.completions.create(
            model="toy",
            prompt="Hi",
            temperature=0,
            max_tokens=300,
            stream=True,
            stream_options={"include_usage": True},
        )
        next(stream)
        running.send_signal(signal.SIGTERM)
        *_, last = stream
        assert last.usage.completion_tokens > 1
        assert running.wait(timeout=60) == ExitStatus.OK
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_port_in_use(folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert "choose another --host or --port" in refused(folder, "--port", port)


def test_address_of_another_machine(folder):
    assert "cannot listen on 192.0.2.1" in refused(folder, "--host", "192.0.2.1")


def test_folder_that_is_no_engine(tmp_path):
    assert "gear-export" in refused(tmp_path, "--port", 0)


def test_cache_that_is_too_small(folder):
    assert "max_cache_bytes is 1024" in refused(folder, "--port", 0, "--max-cache", "1KiB")


@pytest.mark.skipif(count_gpus() > 0, reason="there is a GPU")
@pytest.mark.parametrize(
    ("backend", "status", "text"),
    [
        ("onnxruntime-cuda", ExitStatus.ENVIRONMENT, "--backend onnxruntime"),
        ("tensorrt", ExitStatus.FAILED, "holds no TensorRT engine"),
        ("cuda", ExitStatus.USAGE, "'onnxruntime-cuda'"),
    ],
)
def test_backends_that_cannot_run(folder, backend, status, text):
    assert text in refused(folder, "--port", 0, "--backend", backend, status=status)


def test_size_that_is_none(folder):
    assert "512MiB" in refused(folder, "--max-cache", "much", status=ExitStatus.USAGE)


def test_api_keys(folder, tmp_path):
    key = tmp_path / "key"
    assert "cannot open" in refused(folder, "--api-key-file", key)
    key.write_text("\n")
    assert "is empty" in refused(folder, "--api-key-file", key)
    assert "GEAR_API_KEY is empty" in refused(folder, env={"GEAR_API_KEY": ""})


def test_missing_packages(folder, monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "uvicorn" else name)
    said = refused(folder, status=ExitStatus.ENVIRONMENT)
    assert "the server needs uvicorn" in said
    assert "pip install 'gear-trt[serve]'" in said
