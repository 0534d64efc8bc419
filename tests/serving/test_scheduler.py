"""The scheduler's thread: requests from many threads, refusals, files, and its end."""

import threading

import numpy as np
import pytest
import torch

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.engine import Engine
from gear_trt.runtime.footprint import buffer_bytes, fp16_bytes_per_token, page_bytes
from gear_trt.runtime.model import Model
from gear_trt.runtime.options import GenerationOptions
from gear_trt.serving import Scheduler
from tests.runtime.device import OPEN
from tests.runtime.folders import MAX_CONTEXT, byte_tokenizer, write_engine
from tests.serving.wrapped import Wrapped

TEXT = np.random.default_rng(3).integers(0, 256, 390).tolist()
MEGABYTES = 2**20
PROMPT = "What is it?"


@pytest.fixture(scope="module", params=OPEN)
def model(request, folder):
    """Its caches lie in the host's memory, or on a device."""
    return OPEN[request.param](folder)


def options(**values):
    return GenerationOptions(**{"max_new_tokens": 6, "eos_token_id": (), **values})


def tokens(ticket):
    return [event.token for event in ticket]


def refusal(code, call, *args, **kwargs):
    with pytest.raises(GearError) as caught:
        call(*args, **kwargs)
    assert caught.value.code is code
    return caught.value


@pytest.fixture
def scheduler(model):
    with Scheduler(model, max_cache_bytes=4 * MEGABYTES, max_batch=8) as scheduler:
        yield scheduler


class Held(Wrapped):
    """The toy model's graph, which does as many runs as the test allows."""

    def __init__(self, backend):
        super().__init__(backend)
        self.runs = threading.Semaphore(0)

    def run(self, tokens_BS, new_lengths):
        self.runs.acquire()
        return self.graph.run(tokens_BS, new_lengths)


@pytest.fixture
def held(model):
    """A scheduler of one request at a time and two that wait; and what allows it runs."""
    backend = Held(model.backend)
    slow = Model(model._folder, model.manifest, backend)
    with Scheduler(slow, max_cache_bytes=MEGABYTES, max_batch=1, max_waiting=2) as scheduler:
        yield scheduler, backend.runs.release
        backend.runs.release(1000)


def test_text_and_tokens_are_those_of_an_engine(scheduler, model):
    prompt_ids = byte_tokenizer()(40 * PROMPT[:5]).input_ids
    with Engine(model) as engine:
        want = engine.generate(40 * PROMPT[:5], chat=False, max_new_tokens=80, eos_token_id=())
    events = list(scheduler.submit(prompt_ids, options(max_new_tokens=80)))
    assert tuple(event.token for event in events) == want.token_ids
    assert "".join(event.text for event in events) == want.text
    assert events[-1].finish_reason == "length"


def test_stop_strings_end_an_answer(scheduler, model):
    with Engine(model) as engine:
        text = engine.generate(PROMPT, chat=False, max_new_tokens=60, eos_token_id=()).text
    stop = text[8:10]
    ticket = scheduler.submit(
        byte_tokenizer()(PROMPT).input_ids, options(max_new_tokens=60, stop=stop)
    )
    events = list(ticket)
    assert "".join(event.text for event in events) == text[: text.index(stop)]
    assert events[-1].finish_reason == "stop"


def test_an_answer_ends_where_the_context_does(scheduler):
    assert scheduler.max_tokens == MAX_CONTEXT
    events = list(scheduler.submit(TEXT[:390], options(max_new_tokens=50)))
    assert len(events) == MAX_CONTEXT - 390 + 1
    assert events[-1].finish_reason == "length"


def test_many_threads(scheduler):
    results = {}

    def ask(index):
        prompt = TEXT[index : index + 100]
        results[index] = [tokens(scheduler.submit(prompt, options())) for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, answers in results.items():
        assert answers[0] == answers[1] == answers[2]
        assert answers[0] == tokens(scheduler.submit(TEXT[index : index + 100], options()))
    scheduler.check()
    stats = scheduler.stats()
    assert (stats.running, stats.waiting, stats.cache_bytes_used) == (0, 0, 0)
    assert stats.finished == 48
    assert stats.generated_tokens == 48 * 6
    assert stats.prompt_tokens == 48 * 100
    assert stats.shared_tokens + stats.prefill_tokens == 48 * 100
    assert 0 < stats.cache_bytes_cached < stats.cache_bytes_total <= 4 * MEGABYTES


def test_stats_while_running(held):
    scheduler, allow = held
    events = iter(scheduler.submit(TEXT[:200], options()))
    waiting = scheduler.submit(TEXT[:200], options())
    allow(6)  # four slices and two tokens
    for _ in range(3):
        next(events)
    stats = scheduler.stats()
    layers = scheduler.model.manifest.layers
    assert (stats.running, stats.waiting) == (1, 1)
    assert stats.fp16_bytes == 202 * fp16_bytes_per_token(layers)
    assert stats.cache_bytes_used == buffer_bytes(layers) + 4 * sum(map(page_bytes, layers))
    assert stats.generated_tokens == 3
    allow(1000)
    assert len(tokens(waiting)) == 6
    assert scheduler.stats().running == 0


def test_places_follow_priority_then_arrival(model):
    slow = Model(model._folder, model.manifest, Held(model.backend))
    with Scheduler(slow, max_cache_bytes=MEGABYTES, max_batch=1) as scheduler:
        scheduler.submit(TEXT[:3], options())  # its first run holds the thread
        while not scheduler.stats().running:
            threading.Event().wait(0.001)
        requests = {
            "short": scheduler.submit(TEXT[:9]),
            "same": scheduler.submit(TEXT[:9]),
            "low": scheduler.submit(TEXT[:9], priority=-1),
            "high": scheduler.submit(TEXT[:300], priority=1),
        }
        names = {ticket: name for name, ticket in requests.items()}
        places = sorted((job.place, names[job.request.ticket]) for job in scheduler._inbox)
        slow.backend.runs.release(10_000)
    assert [name for _, name in places] == ["high", "short", "same", "low"]


# Refusals


@pytest.mark.parametrize(
    ("prompt", "request_", "code", "words"),
    [
        ([], {}, ErrorCode.EMPTY_PROMPT, ""),
        ([5, 260], {}, ErrorCode.BAD_REQUEST, "vocabulary"),
        ([-1], {}, ErrorCode.BAD_REQUEST, "vocabulary"),
        ([0] * (MAX_CONTEXT + 1), {}, ErrorCode.CONTEXT_EXCEEDED, "401 tokens"),
        ([1], {"n": 0}, ErrorCode.BAD_REQUEST, "n is 0"),
        ([1], {"n": 1000}, ErrorCode.BAD_REQUEST, "n is 1000"),
        ([1], {"logprobs": -1}, ErrorCode.BAD_REQUEST, "logprobs is -1"),
        ([1], {"logprobs": 260}, ErrorCode.BAD_REQUEST, "logprobs is 260"),
        ([1], {"shared_prefix": 2}, ErrorCode.BAD_REQUEST, "shared_prefix is 2"),
        ([1], {"timeout_s": 0}, ErrorCode.BAD_REQUEST, "timeout_s is 0"),
        ([1], {"timeout_s": float("nan")}, ErrorCode.BAD_REQUEST, "timeout_s is nan"),
    ],
)
def test_bad_requests_are_refused(scheduler, prompt, request_, code, words):
    assert words in refusal(code, scheduler.submit, prompt, **request_).message
    assert scheduler.stats().waiting == 0


def test_a_small_cache_bounds_the_prompt(model):
    with Scheduler(model, max_cache_bytes=MEGABYTES // 8, max_batch=2) as scheduler:
        assert scheduler.max_tokens < MAX_CONTEXT
        error = refusal(
            ErrorCode.CONTEXT_EXCEEDED, scheduler.submit, TEXT[: scheduler.max_tokens + 1]
        )
        assert "max_cache_bytes" in error.hint
        assert len(tokens(scheduler.submit(TEXT[: scheduler.max_tokens], options()))) == 1


def test_too_small_a_cache_is_refused(model):
    refusal(ErrorCode.BAD_REQUEST, Scheduler, model, max_cache_bytes=1000)


@pytest.mark.parametrize("name", ["max_batch", "max_waiting", "threads"])
def test_sizes_below_one_are_refused(folder, name):
    error = refusal(
        ErrorCode.BAD_REQUEST, Scheduler, folder, max_cache_bytes=MEGABYTES, **{name: 0}
    )
    assert name in error.message


def test_unknown_backends_are_refused(folder):
    error = refusal(
        ErrorCode.BAD_REQUEST, Scheduler, folder, max_cache_bytes=MEGABYTES, backend="cuda"
    )
    assert error.hint.endswith("auto, tensorrt, onnxruntime-cuda, onnxruntime")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("backend", "code"),
    [("onnxruntime-cuda", ErrorCode.NO_GPU), ("tensorrt", ErrorCode.MISSING_FILE)],
)
def test_a_backend_by_name_is_taken_or_refused(folder, backend, code):
    refusal(code, Scheduler, folder, max_cache_bytes=MEGABYTES, backend=backend)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    folder = write_engine(tmp_path / "bare", tokenizer=False)
    refusal(ErrorCode.MISSING_FILE, Scheduler, folder, max_cache_bytes=MEGABYTES, threads=1)


def test_a_full_queue_refuses_and_recovers(held):
    scheduler, allow = held
    accepted = []
    error = None
    while error is None:
        try:
            accepted.append(scheduler.submit(TEXT[:9], options()))
        except GearError as refused:
            error = refused
    assert error.code is ErrorCode.QUEUE_FULL
    assert 2 <= len(accepted) <= 3
    allow(1000)
    assert len({tuple(tokens(ticket)) for ticket in accepted}) == 1
    assert len(tokens(scheduler.submit(TEXT[:9], options()))) == 6


# Files


def test_a_prefix_goes_from_one_scheduler_to_another(scheduler, model, tmp_path):
    want = tokens(scheduler.submit(TEXT[:200], options()))
    assert scheduler.save_prefix(tmp_path / "prefix", TEXT[:200]) == 196
    with Scheduler(model, max_cache_bytes=4 * MEGABYTES, max_batch=2) as other:
        assert other.load_prefix(tmp_path / "prefix") == TEXT[:196]
        assert tokens(other.submit(TEXT[:200], options())) == want
        assert other.stats().prefill_tokens == 4
        refusal(ErrorCode.MISSING_FILE, other.load_prefix, tmp_path / "none")
        assert tokens(other.submit(TEXT[:200], options())) == want


# Ends


def test_cancelled_and_overdue_requests_end(held):
    scheduler, allow = held
    running = scheduler.submit(TEXT[:9], options(max_new_tokens=300))
    overdue = scheduler.submit(TEXT[:9], options(), timeout_s=1e-3)
    running.cancel()
    allow(1000)
    assert list(running)[-1].finish_reason == "cancelled"
    assert list(overdue)[-1].finish_reason in ("timeout", "length")
    assert scheduler.stats().cancelled >= 1


def test_closing_ends_what_is_left(held):
    scheduler, allow = held
    tickets = [scheduler.submit(TEXT[:9], options(max_new_tokens=300)) for _ in range(2)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    allow(1000)
    closing.join()
    for ticket in tickets:
        refusal(ErrorCode.CLOSED, list, ticket)
    refusal(ErrorCode.CLOSED, scheduler.submit, TEXT[:9])
    refusal(ErrorCode.CLOSED, scheduler.check)
    assert scheduler.stats().cache_bytes_used == 0
    scheduler.close()


def test_draining_lets_requests_finish(model):
    with Scheduler(model, max_cache_bytes=MEGABYTES, max_batch=1) as scheduler:
        tickets = [scheduler.submit(TEXT[:9], options()) for _ in range(3)]
        scheduler.close(drain_s=60)
        assert [len(tokens(ticket)) for ticket in tickets] == [6, 6, 6]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_reaches_every_reader(held):
    """What no request can cause ends the scheduler, and nobody waits for ever."""
    scheduler, allow = held
    ticket = scheduler.submit(TEXT[:9], options())
    scheduler._batcher._decode = None
    scheduler._batcher._prefill = None
    allow(1000)
    with pytest.raises(TypeError):
        list(ticket)
    scheduler._thread.join()
    refusal(ErrorCode.CLOSED, scheduler.submit, TEXT[:9])
