"""The server over the real scheduler and a toy engine: the same tokens as alone, and no leak."""

import asyncio
import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest

from benchmarks import server_load
from gear_trt.runtime.engine import load
from gear_trt.serving import Scheduler
from gear_trt.spec import CompressionConfig
from tests.graphs import ToyModel
from tests.portable import portable_kernels  # noqa: F401 - a fixture
from tests.runtime.folders import MAX_CONTEXT, write_engine
from tests.runtime.test_samples import run_sample
from tests.serving.servers import LIMITS, serving, wait_until

STREAMS, REQUESTS = 16, 60
CACHE_BYTES = 24 << 20


@pytest.fixture(scope="module")
def scheduler(model):
    with Scheduler(model, max_cache_bytes=CACHE_BYTES, max_batch=8) as scheduler:
        yield scheduler


@pytest.fixture(scope="module")
def client(scheduler):
    limits = replace(LIMITS, answers=STREAMS)
    with (
        serving(scheduler, limits=limits) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=8) as client,
    ):
        yield client


def complete(client, prompt="Hi", **options):
    options = {"temperature": 0, "max_tokens": 12} | options
    return client.completions.create(model="toy", prompt=prompt, **options)


def test_the_answer_is_the_engines(client, folder):
    with load(folder, threads=1) as engine:
        alone = engine.generate("Hi", max_new_tokens=12)
    chat = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=12
    )
    assert chat.choices[0].message.content == alone.text
    assert chat.usage.completion_tokens == alone.generated_tokens
    assert chat.usage.prompt_tokens == alone.prompt_tokens


def test_a_stream_is_the_whole_answer(client):
    whole = complete(client)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 12


def test_seeds_repeat_samples(client):
    options = {"temperature": 2.0, "max_tokens": 24, "n": 3}
    first = complete(client, seed=1, **options)
    again = complete(client, seed=1, **options)
    other = complete(client, seed=9, **options)
    texts = [[choice.text for choice in answer.choices] for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 3
    assert first.usage.completion_tokens == 72


def test_stop_strings(client):
    text = complete(client).choices[0].text
    stop = text[4:6]
    answer = complete(client, stop=[stop])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs_are_the_models(client, scheduler, folder):
    answer = complete(client, prompt="Hello", max_tokens=3, logprobs=2).choices[0].logprobs
    ids = scheduler.model.tokenizer("Hello").input_ids
    with load(folder, threads=1) as engine:
        logits = engine.step([ids])[0].astype(np.float64)
    expected = logits.max() - np.log(np.exp(logits).sum())
    assert math.isclose(answer.token_logprobs[0], expected, rel_tol=1e-4, abs_tol=1e-5)
    assert answer.top_logprobs[0][answer.tokens[0]] == answer.token_logprobs[0]
    assert len(answer.tokens) == len(answer.text_offset) == 3


@pytest.mark.parametrize("top", [None, 3])
def test_chat_logprobs(client, top):
    options = {} if top is None else {"top_logprobs": top}
    messages = [{"role": "user", "content": "Hi"}]
    answer = client.chat.completions.create(
        model="toy", messages=messages, temperature=0, max_tokens=5, logprobs=True, **options
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    for item in content:
        assert item.logprob <= 0
        assert len(item.top_logprobs) == (top or 0)
        assert item.bytes is None or bytes(item.bytes).decode() == item.token
    chunks = client.chat.completions.create(
        model="toy",
        messages=messages,
        temperature=0,
        max_tokens=5,
        logprobs=True,
        stream=True,
        **options,
    )
    streamed = [item for chunk in chunks for item in chunk.choices[0].logprobs.content]
    assert [item.token for item in streamed] == [item.token for item in content]


def test_shared_prompts_are_counted(client):
    prompt = "a common beginning " * 12
    assert complete(client, prompt + "one").usage.prompt_tokens_details.cached_tokens == 0
    shared = complete(client, prompt + "two").usage.prompt_tokens_details.cached_tokens
    assert 0 < shared <= len(prompt)


def test_sample(client, monkeypatch, capsys):
    url = str(client.base_url).removesuffix("/v1/")
    run_sample(monkeypatch, "03_server_client.py", url, "Hello?")
    assert "prompt tokens" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="gear serve"):
        run_sample(monkeypatch, "03_server_client.py")


def test_full_context_ends_the_answer(client):
    answer = complete(client, "x" * (MAX_CONTEXT - 2), max_tokens=50)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == MAX_CONTEXT + 1


@pytest.mark.usefixtures("portable_kernels")
def test_many_streams_at_once(tmp_path):
    """Some clients leave in the middle; the others get what they get alone; nothing is lost."""
    toy = ToyModel(config=CompressionConfig.preset("exact"))
    folder = write_engine(tmp_path / "exact", toy)
    prompts = [f"prompt {number} " * (1 + number % 9) for number in range(10)]
    with (
        Scheduler(folder, max_cache_bytes=CACHE_BYTES, max_batch=6, threads=1) as scheduler,
        serving(scheduler, limits=replace(LIMITS, answers=8)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=20) as client,
    ):
        alone = [complete(client, prompt, max_tokens=20).choices[0].text for prompt in prompts]

        def one(number):
            leaves_after = random.Random(number).choice([None, None, 1, 5])  # noqa: S311
            stream = complete(client, prompts[number % 10], max_tokens=20, stream=True)
            text = ""
            for count, chunk in enumerate(stream, start=1):
                text += chunk.choices[0].text
                if count == leaves_after:
                    stream.close()
                    return None
            return text == alone[number % 10]

        with ThreadPoolExecutor(STREAMS) as pool:
            results = list(pool.map(one, range(REQUESTS)))
        assert results.count(True) + results.count(None) == REQUESTS
        assert 0 < results.count(None) < REQUESTS
        wait_until(lambda: scheduler.stats().running == scheduler.stats().waiting == 0)
        scheduler.check()
        assert scheduler.stats().cache_bytes_used == 0
        metrics = httpx.get(f"{url}/metrics").text
        assert 'finish_reason="error"' not in metrics
        assert 'path="/v1/completions",status="429"' in metrics


def test_load(scheduler):
    """Twice as many streams as seats: some are sent away and come again, none fails."""
    with serving(scheduler, limits=replace(LIMITS, answers=4)) as url:
        load = asyncio.run(server_load.run(url, streams=8, seconds=2, prompt_words=(1, 40)))
        wait_until(lambda: scheduler.stats().running == 0)
    assert load.errors == []
    assert load.ended > 0
    assert load.sent_away > 0
    assert load.summary()["inter_token_ms"]["p50"] > 0
    scheduler.check()
    with pytest.raises(ValueError, match="is not this machine"):
        asyncio.run(server_load.run("http://192.0.2.1", streams=1, seconds=1))
