"""The HTTP layer over a scripted scheduler: OpenAI's forms, refusals, limits, disconnects."""

from dataclasses import replace

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gear_trt.errors import ErrorCode, GearError
from gear_trt.serving import server
from gear_trt.serving.app import Settings
from gear_trt.serving.requests import ChatRequest, TextRequest
from tests.runtime.folders import MAX_CONTEXT, byte_tokenizer
from tests.serving.scripted import WORDS, ScriptedScheduler
from tests.serving.servers import LIMITS, serving, wait_until

HELLO = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def shared(folder):
    scheduler = ScriptedScheduler(folder)
    with serving(scheduler) as url:
        yield scheduler, url


@pytest.fixture
def scheduler(shared):
    shared[0].reset()
    return shared[0]


@pytest.fixture
def url(shared, scheduler):
    return shared[1]


@pytest.fixture(scope="module")
def raw_client(shared):
    with httpx.Client(base_url=shared[1]) as client:
        yield client


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def chat(client, **options):
    return client.chat.completions.create(model="toy", messages=HELLO, **options)


def test_chat(client, scheduler):
    answer = chat(client)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello you"
    assert choice.finish_reason == "stop"
    prompt = len(scheduler.requests[0].prompt_ids)
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.completion_tokens == 3
    assert answer.usage.total_tokens == prompt + 3


def test_chat_stream(client):
    chunks = list(chat(client, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello you"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, "stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_stream_with_usage(client):
    *chunks, last = chat(client, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == 3


def test_metrics(folder):
    with serving(ScriptedScheduler(folder)) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
            chat(client)
        text = httpx.get(f"{url}/metrics").text
    for line in (
        "gear_running 3.0",
        "gear_waiting 2.0",
        "gear_cache_used_bytes 1e+06",
        "gear_cache_fp16_bytes 3.5e+06",
        "gear_cache_compression_ratio 3.5",
        "gear_prefix_hit_tokens_total 64.0",
        'gear_requests_total{path="/v1/chat/completions",status="200"} 1.0',
        'gear_answers_total{finish_reason="stop"} 1.0',
        "gear_time_to_first_token_seconds_count 1.0",
        "gear_inter_token_latency_seconds_count 2.0",
    ):
        assert line in text.splitlines()


def test_answers_are_sampled_by_the_options(client, scheduler):
    chat(client, temperature=0.5, top_p=0.9, seed=7, stop="!", max_tokens=9)
    options = scheduler.requests[0].options
    assert (options.temperature, options.top_p, options.seed) == (0.5, 0.9, 7)
    assert (options.stop, options.max_new_tokens) == (("!",), 9)
    chat(client, extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2})
    options = scheduler.requests[-1].options
    assert (options.top_k, options.min_p, options.repetition_penalty) == (5, 0.1, 1.2)


def test_without_options_the_model_samples_until_the_context_is_full(client, scheduler):
    chat(client)
    (request,) = scheduler.requests
    assert request.options.samples
    assert request.options.temperature == 1
    assert request.options.max_new_tokens == MAX_CONTEXT + 1 - len(request.prompt_ids)


def test_temperature_zero_takes_the_most_likely_token(client, scheduler):
    chat(client, temperature=0)
    assert not scheduler.requests[0].options.samples


def test_several_answers(client):
    answer = chat(client, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 9
    texts = ["", "", ""]
    for chunk in chat(client, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["Hello you"] * 3


def test_text_completions(client, scheduler):
    answer = client.completions.create(model="toy", prompt="Hi")
    assert answer.choices[0].text == "Hello you"
    assert scheduler.requests[0].prompt_ids == byte_tokenizer()("Hi").input_ids
    assert scheduler.requests[0].options.max_new_tokens == 16
    chunks = client.completions.create(model="toy", prompt="Hi", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello you"


@pytest.mark.parametrize(
    ("prompt", "rows"),
    [
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["H", "i"], [byte_tokenizer()(text).input_ids for text in "Hi"]),
    ],
)
def test_prompts_of_text_completions(client, scheduler, prompt, rows):
    answer = client.completions.create(model="toy", prompt=prompt, n=2)
    assert [request.prompt_ids for request in scheduler.requests] == rows
    assert [choice.index for choice in answer.choices] == list(range(2 * len(rows)))
    assert answer.usage.prompt_tokens == sum(map(len, rows))


def test_content_parts_and_roles(client, scheduler):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    client.chat.completions.create(
        model="toy",
        messages=[{"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts}],
    )
    text = "<|system|>Be brief<|user|>a\nb<|assistant|>"
    assert scheduler.requests[0].prompt_ids == byte_tokenizer()(text).input_ids


@pytest.mark.parametrize(
    "option",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"frequency_penalty": 0},
        {"presence_penalty": 0.0},
        {"logit_bias": {}},
        {"response_format": {"type": "text"}},
        {"store": False},
        {"user": "somebody"},
        {"seed": None},
    ],
)
def test_what_asks_for_nothing_that_is_lacking_is_taken(client, option):
    assert chat(client, extra_body=option).choices[0].message.content == "Hello you"


@pytest.mark.parametrize(
    ("option", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"7": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"no_such_parameter": 1}, "no_such_parameter"),
    ],
)
def test_what_is_not_done_is_refused(client, scheduler, option, param):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, extra_body=option)
    assert refused.value.param == param
    assert refused.value.code == "unsupported_parameter"
    assert refused.value.type == "invalid_request_error"
    assert param in refused.value.message
    assert not scheduler.requests


@pytest.mark.parametrize(
    ("option", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 5}, "n"),
        ({"seed": -1}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop.0"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
        ),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, None),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None),
        ({"stream_options": {"include_usage": True}}, None),
    ],
)
def test_wrong_values_are_refused(client, scheduler, option, param):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, extra_body=option)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert not scheduler.requests


NAMES = sorted({*ChatRequest.model_fields, *TextRequest.model_fields, "tools", "logit_bias"})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
)
ROLES = st.sampled_from(["user", "system", "assistant", "type", "text", "role", "content"])
VALUES = st.recursive(
    SCALARS | ROLES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ROLES, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), st.booleans())
def test_any_body_is_answered_or_refused(shared, raw_client, fields, is_chat):
    shared[0].reset()
    good = {"messages": HELLO} if is_chat else {"prompt": "Hi"}
    path = "chat/completions" if is_chat else "completions"
    answer = raw_client.post(f"/v1/{path}", json={"model": "toy"} | good | fields)
    assert answer.status_code in (200, 400, 404), answer.text
    if not answer.is_success:
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"[]", b'{"model": "toy", "prompt": "Hi", "top_p": NaN}', b"\xff", b"[" * 5000],
)
def test_body_that_is_no_json(url, body):
    answer = httpx.post(
        f"{url}/v1/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_body_that_does_not_say_it_is_json(url, scheduler):
    """A page of another origin can send such bodies without asking."""
    body = b'{"model": "toy", "prompt": "Hi"}'
    answer = httpx.post(
        f"{url}/v1/completions", content=body, headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 400
    assert not scheduler.requests


def test_other_models_and_paths(client, url):
    with pytest.raises(openai.NotFoundError, match="this server has 'toy'") as missing:
        client.chat.completions.create(model="gpt", messages=HELLO)
    assert missing.value.code == "model_not_found"
    assert httpx.get(f"{url}/v2").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{url}/v1/completions").status_code == 405


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "toy"
    assert model.max_model_len == MAX_CONTEXT
    assert client.models.retrieve("toy") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_prompts_that_do_not_fit(client):
    with pytest.raises(openai.BadRequestError, match="this server takes 400") as refused:
        client.completions.create(model="toy", prompt="x" * 401)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        client.completions.create(model="toy", prompt="")
    with pytest.raises(openai.BadRequestError, match="token 260 does not exist"):
        client.completions.create(model="toy", prompt=[260])


def test_large_bodies(client, url):
    with pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(model="toy", prompt="x" * LIMITS.body_bytes)
    assert refused.value.status_code == 413
    assert refused.value.type == "invalid_request_error"
    chunks = (b" " * 1000 for _ in range(20))
    answer = httpx.post(
        f"{url}/v1/completions", content=chunks, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413


def test_full_server_says_when_to_return(client, scheduler):
    scheduler.answers_end = False
    streams = [chat(client, stream=True, n=2) for _ in range(LIMITS.answers // 2)]
    with pytest.raises(openai.RateLimitError) as refused:
        chat(client)
    assert int(refused.value.response.headers["Retry-After"]) >= 1
    assert refused.value.code == "server_full"
    streams[0].close()
    wait_until(lambda: scheduler.requests[0].ticket.is_cancelled)
    scheduler.answers_end = True
    assert chat(client).choices[0].message.content == "Hello you"
    streams[1].close()


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_is_not_answered(folder, stream):
    scheduler = ScriptedScheduler(folder, answers_end=False)
    body = {"model": "toy", "messages": HELLO, "stream": stream}
    with serving(scheduler) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.5)
        wait_until(lambda: scheduler.requests and scheduler.requests[0].ticket.is_cancelled)
        cancelled = 'gear_answers_total{finish_reason="cancelled"} 1.0'
        wait_until(lambda: cancelled in httpx.get(f"{url}/metrics").text)


def test_failures_of_the_scheduler(client, scheduler):
    scheduler.failure = GearError(
        ErrorCode.NON_FINITE_ACTIVATION, "layer 3 is not finite", hint="check the weights"
    )
    with pytest.raises(openai.InternalServerError, match="layer 3 is not finite") as failed:
        chat(client)
    assert failed.value.type == "server_error"
    stream = chat(client, stream=True)
    texts = []
    with pytest.raises(openai.APIError, match="layer 3 is not finite"):
        texts.extend(chunk.choices[0].delta.content for chunk in stream)
    assert texts == list(WORDS)


def test_bugs_are_logged_counted_and_not_shown(client, scheduler, url, caplog):
    scheduler.failure = ZeroDivisionError("a secret")
    with pytest.raises(openai.InternalServerError) as failed:
        chat(client)
    assert "secret" not in failed.value.message
    assert "a secret" in caplog.text
    counted = 'gear_requests_total{path="/v1/chat/completions",status="500"}'
    assert counted in httpx.get(f"{url}/metrics").text


def test_api_key(folder):
    with serving(ScriptedScheduler(folder), api_key="s3cret") as url:
        for key in ("wrong", "s3cret!", "schlüssel"):
            with (
                openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
                pytest.raises((openai.AuthenticationError, UnicodeEncodeError)),
            ):
                chat(client)
        assert httpx.get(f"{url}/v1/models").status_code == 401
        with openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret") as client:
            assert chat(client).choices[0].message.content == "Hello you"
        assert httpx.get(f"{url}/health").status_code == 200


def test_time_is_limited(folder):
    scheduler = ScriptedScheduler(folder)
    scheduler.last_reason = "timeout"
    limits = replace(LIMITS, seconds=3.0)
    with (
        serving(scheduler, limits=limits) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as late:
            chat(client)
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError, match="took longer"):
            list(chat(client, stream=True))
    assert scheduler.requests[0].timeout_s == 3.0


def test_health(client, scheduler, url):
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    scheduler.is_open = False
    assert httpx.get(f"{url}/health").status_code == 503
    scheduler.failure = GearError(ErrorCode.CLOSED, "it is closed", hint="start it")
    with pytest.raises(openai.InternalServerError) as closed:
        chat(client)
    assert closed.value.status_code == 503


def test_answers_that_do_not_end_are_cancelled(folder):
    scheduler = ScriptedScheduler(folder, answers_end=False)
    with (
        serving(scheduler, drain_seconds=1) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        stream = chat(client, stream=True)
        next(stream)
    assert scheduler.requests[0].ticket.is_cancelled
    with pytest.raises((httpx.RemoteProtocolError, openai.APIError)):
        next(stream)


@pytest.mark.parametrize(
    ("host", "api_key", "warns"),
    [("127.0.0.1", None, False), ("0.0.0.0", None, True), ("0.0.0.0", "s3cret", False)],  # noqa: S104
)
def test_servers_without_a_key_warn_of_strangers(host, api_key, warns, caplog):
    with server.bind(host, 0) as bound:
        server._warn_of_strangers(bound, Settings("toy", LIMITS, api_key))
    assert ("no API key is set" in caplog.text) == warns
