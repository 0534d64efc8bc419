"""The Ray Serve sample with real Ray: two replicas, each prompt's prefix has one of them."""

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from importlib.util import find_spec

import httpx
import openai
import pytest

from gear_trt.runtime.engine import load
from tests.e2e.readme import REPOSITORY
from tests.runtime.folders import write_engine
from tests.serving.servers import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: ray[serve]"),
]

PROMPTS = [f"{number} is where this prompt begins " * 3 for number in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engine") / "toy")


@pytest.fixture(scope="module")
def url(folder):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with sample(folder, "2", str(port)):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def sample(*arguments):
    command = [sys.executable, REPOSITORY / "samples" / "06_ray_serve.py", *arguments]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            wait_until(lambda: is_ready(arguments[-1]) or process.poll() is not None, 120)
            assert process.poll() is None
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def is_ready(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=10).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def complete(client, prompt, **options):
    """Return the replica that answered, and the answer."""
    create = client.completions.with_raw_response.create
    answer = create(model="toy", prompt=prompt, temperature=0, max_tokens=8, **options)
    return answer.headers["x-replica"], answer.parse()


def test_prompts_that_begin_alike_share_a_replica_and_its_pages(client, folder):
    with load(folder, threads=1) as engine:
        alone = [engine.generate(text, chat=False, max_new_tokens=8).text for text in PROMPTS]
    first = [complete(client, prompt) for prompt in PROMPTS]
    again = [complete(client, prompt) for prompt in PROMPTS]
    assert [replica for replica, _ in first] == [replica for replica, _ in again]
    assert len(Counter(replica for replica, _ in first)) == 2
    for (_, one), (_, other), text in zip(first, again, alone, strict=True):
        assert one.choices[0].text == other.choices[0].text == text
        assert one.usage.prompt_tokens_details.cached_tokens == 0
        assert other.usage.prompt_tokens_details.cached_tokens > 0


def test_streams_and_errors_pass_through(client):
    _, whole = complete(client, "Hi")
    stream = client.completions.create(
        model="toy", prompt="Hi", temperature=0, max_tokens=8, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    with pytest.raises(openai.NotFoundError, match="this server has 'toy'"):
        client.completions.create(model="other", prompt="Hi")


def test_replica_of_a_client_that_leaves_stops(client, url):
    watched = httpx.get(f"{url}/metrics").headers["x-replica"]
    prompt = next(prompt for prompt in PROMPTS if complete(client, prompt)[0] == watched)
    stream = client.completions.create(
        model="toy", prompt=prompt, n=16, max_tokens=300, stream=True
    )
    next(stream)
    stream.close()
    cancelled = 'gear_answers_total{finish_reason="cancelled"} 16.0'
    wait_until(lambda: cancelled in httpx.get(f"{url}/metrics").text, 20)
