"""Rounds of the batcher: the same answers whatever runs beside them, and nothing is lost."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.model import Model
from gear_trt.runtime.options import GenerationOptions
from gear_trt.runtime.paged_engine import PagedEngine
from gear_trt.serving.batcher import Batcher
from gear_trt.serving.job import Request
from gear_trt.serving.ticket import Ticket
from tests.runtime.device import OPEN
from tests.runtime.paged import new_cache
from tests.serving.wrapped import Wrapped

TEXT = np.random.default_rng(1).integers(0, 256, 400).tolist()
OTHER = np.random.default_rng(2).integers(0, 256, 400).tolist()


@pytest.fixture(scope="module", params=OPEN)
def model(request, folder):
    """Its caches lie in the host's memory, or on a device."""
    return OPEN[request.param](folder)


class Clock:
    """A clock that tests set."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class FailingBackend(Wrapped):
    """The toy model's graph, which fails where a step has a certain token."""

    def __init__(self, backend, bad):
        super().__init__(backend)
        self.bad = bad

    def run(self, tokens_BS, new_lengths):
        logits_BSV = self.graph.run(tokens_BS, new_lengths)
        if (tokens_BS == self.bad).any():  # the state is written, as where a late layer fails
            raise GearError(ErrorCode.NON_FINITE_ACTIVATION, "layer 1: not finite", hint="none")
        return logits_BSV


class Recorder(Wrapped):
    """The toy model's graph, and the shapes that it ran."""

    def __init__(self, backend):
        super().__init__(backend)
        self.shapes = []

    def run(self, tokens_BS, new_lengths):
        self.shapes.append(tokens_BS.shape)
        return self.graph.run(tokens_BS, new_lengths)


def new_batcher(model, *, pages=64, slots=8, clock=None, wrap=None):
    if wrap is not None:
        model = Model(model._folder, model.manifest, wrap(model.backend))
    cache = new_cache(model, num_pages=pages, slots=slots)
    return Batcher(PagedEngine(model, cache), clock=clock or Clock())


def submit(batcher, prompt, *, turn=0.0, n=1, mark=0, deadline=float("inf"), **options):
    """Queue a request; its events carry the logarithms that show every bit of the logits."""
    request = Request(
        ticket=Ticket(n),
        prompt_ids=tuple(prompt),
        options=GenerationOptions(**{"max_new_tokens": 5, "eos_token_id": (), **options}),
        samples=n,
        shared_prefix=mark,
        turn=turn,
        deadline=deadline,
        logprobs=1,
    )
    batcher.add(batcher.new_job(request))
    return request.ticket


def run(batcher, rounds=10_000):
    for _ in range(rounds):
        if not batcher.waiting + batcher.running:
            break
        batcher.step()
        batcher.engine.cache.check()


def answer(ticket):
    """Return per sample what its events say of the model."""
    samples = {}
    for event in ticket:
        bits = (event.token, event.logprob, event.top_logprobs, event.finish_reason)
        samples.setdefault(event.sample, []).append(bits)
    return samples


def alone(model, prompt, **request):
    batcher = new_batcher(model)
    ticket = submit(batcher, prompt, **request)
    run(batcher)
    return answer(ticket)


def leaves_nothing(batcher):
    cache = batcher.engine.cache
    cache.check()
    assert (batcher.running, batcher.waiting, cache.nbytes) == (0, 0, 0)
    assert cache.allocator.available == cache.allocator.num_pages
    return True


REQUESTS = (
    {"prompt": TEXT[:5], "max_new_tokens": 150},
    {"prompt": TEXT[:150], "max_new_tokens": 70, "temperature": 3.0, "seed": 1, "n": 3},
    {"prompt": TEXT[:200], "max_new_tokens": 40},
    {"prompt": [*TEXT[:140], *OTHER[:60]], "max_new_tokens": 60, "temperature": 3.0, "seed": 2},
    {"prompt": [*TEXT[:140], *OTHER[60:80]], "max_new_tokens": 60, "mark": 140},
    {"prompt": [*TEXT[:140], *OTHER[90:99]], "max_new_tokens": 30, "mark": 140, "n": 2},
    {"prompt": OTHER[:1], "max_new_tokens": 80},
    {"prompt": OTHER[:132], "max_new_tokens": 3, "repetition_penalty": 1.3},
)


@pytest.fixture(scope="module")
def answers(model):
    """The answers to REQUESTS, each computed alone."""
    return [alone(model, **request) for request in REQUESTS]


@pytest.mark.parametrize(
    ("pages", "slots", "preempts"), [(64, 16, False), (6, 16, True), (5, 3, True), (64, 2, False)]
)
def test_answers_do_not_depend_on_batch_mates_or_room(model, answers, pages, slots, preempts):
    batcher = new_batcher(model, pages=pages, slots=slots)
    tickets = [submit(batcher, **request) for request in REQUESTS]
    run(batcher)
    assert [answer(ticket) for ticket in tickets] == answers
    assert (batcher.counts.preemptions > 0) == preempts
    assert leaves_nothing(batcher)


def test_answers_do_not_depend_on_what_is_cached(model, answers):
    batcher = new_batcher(model)
    for _ in range(2):
        tickets = [submit(batcher, **request) for request in reversed(REQUESTS)]
        run(batcher)
        assert [answer(ticket) for ticket in tickets] == answers[::-1]
    assert batcher.counts.shared_tokens > 500


requests = st.integers(0, len(REQUESTS) - 1)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), requests, st.integers(-2, 2)),
        st.tuples(st.just("cancel"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 40), st.just(0)),
        st.tuples(st.just("forget"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(actions=actions, pages=st.integers(6, 20), slots=st.integers(1, 6))
def test_nothing_leaks_and_no_answer_is_wrong(model, answers, actions, pages, slots):
    batcher = new_batcher(model, pages=pages, slots=slots)
    submitted, cancelled = [], set()
    for action, value, turn in actions:
        if action == "submit":
            submitted.append((submit(batcher, **REQUESTS[value], turn=float(turn)), value))
        elif action == "cancel" and value < len(submitted):
            submitted[value][0].cancel()
            cancelled.add(value)
        elif action == "step":
            run(batcher, value)
        elif action == "forget":
            batcher.engine.cache.allocator.forget()
    run(batcher)
    assert leaves_nothing(batcher)
    for index, (ticket, value) in enumerate(submitted):
        got = answer(ticket)
        assert set(got) == set(answers[value])
        for sample, bits in got.items():
            if index in cancelled and bits[-1][-1] == "cancelled":
                assert bits[:-1] == answers[value][sample][: len(bits) - 1]
            else:
                assert bits == answers[value][sample]


# Sharing


@pytest.mark.parametrize("common", [150, 196, 250])
def test_a_marked_prefix_is_computed_once(model, common):
    batcher = new_batcher(model, slots=16)
    for index in range(16):
        prompt = [*TEXT[:common], *OTHER[index : index + 10]]
        submit(batcher, prompt, mark=common)
    run(batcher)
    assert batcher.counts.prefill_tokens == common + 16 * 10
    assert batcher.counts.shared_tokens == 15 * common


def test_without_a_mark_whole_pages_are_computed_once(model):
    batcher = new_batcher(model, slots=16)
    for index in range(16):
        submit(batcher, [*TEXT[:150], *OTHER[index : index + 10]])
    run(batcher)
    assert batcher.counts.prefill_tokens == 132 + 16 * (18 + 10)


def test_samples_are_those_of_single_requests(model):
    together = alone(model, TEXT[:150], n=3, temperature=3.0, seed=5)
    for sample in range(3):
        single = alone(model, TEXT[:150], temperature=3.0, seed=5 + sample)
        assert single[0] == together[sample]
    assert together[0] != together[1] != together[2]


def test_samples_share_the_prompt_and_run_it_once(model):
    batcher = new_batcher(model, slots=4)
    submit(batcher, TEXT[:200], n=4, max_new_tokens=20, temperature=1.0)
    run(batcher, 10)
    assert batcher.running == 4
    assert batcher.counts.prefill_tokens == 200
    assert batcher.engine.cache.allocator.held == 4  # three of tokens, one of sinks


def test_samples_without_a_buffer_row_wait_for_one(model):
    batcher = new_batcher(model, slots=2)
    ticket = submit(batcher, TEXT[:200], n=5, temperature=3.0, seed=1)
    run(batcher)
    assert answer(ticket) == alone(model, TEXT[:200], n=5, temperature=3.0, seed=1)


def test_events_say_what_was_shared(model):
    batcher = new_batcher(model)
    submit(batcher, TEXT[:200])
    run(batcher)
    ticket = submit(batcher, [*TEXT[:140], *OTHER[:8]])
    run(batcher)
    events = list(ticket)
    assert {event.shared_tokens for event in events} == {132}
    assert {event.prompt_tokens for event in events} == {148}
    assert [event.generated_tokens for event in events] == [1, 2, 3, 4, 5]


# Order


def finished_order(batcher, tickets):
    order = []
    while batcher.waiting + batcher.running:
        batcher.step()
        ended = [i for i, one in enumerate(tickets) if one._open_samples == 0 and i not in order]
        order += ended
    return order


def test_turns_decide_who_comes_first(model):
    batcher = new_batcher(model, slots=1)
    tickets = [submit(batcher, TEXT[:20], turn=turn) for turn in (2.0, 3.0, 1.0, 2.0)]
    assert finished_order(batcher, tickets) == [2, 0, 3, 1]


def test_the_last_in_turn_gives_way(model):
    """Both fit at first, not in the end: the first one goes on, though it came later."""
    batcher = new_batcher(model, pages=5, slots=2)
    options = {"max_new_tokens": 150}
    tickets = [
        submit(batcher, text, turn=turn, **options)
        for turn, text in ((2, TEXT[:60]), (1, OTHER[:60]))
    ]
    assert finished_order(batcher, tickets) == [1, 0]
    assert batcher.counts.preemptions > 0


def test_prompts_do_not_stall_those_who_decode(model):
    """Between two tokens of a running answer few tokens of prompts are computed."""
    batcher = new_batcher(model, wrap=Recorder)
    running = submit(batcher, TEXT[:3], max_new_tokens=60)
    run(batcher, 2)
    for start in range(5):
        submit(batcher, OTHER[start : start + 300])
    seen = len(running._events)
    shapes = batcher.engine.model.backend.shapes
    del shapes[:]
    while batcher.counts.prefill_tokens < 800:
        batcher.step()
        seen += 1
        assert len(running._events) == seen
    assert max(rows * width for rows, width in shapes) <= model.backend.pace.prefill_tokens


def test_slices_run_together_where_they_fit(model):
    batcher = new_batcher(model, wrap=Recorder)
    for start in range(4):
        submit(batcher, OTHER[start : start + 20])
    batcher.step()
    assert batcher.engine.model.backend.shapes == [(4, 20)]


def test_the_backend_says_how_many_slices_run_together(model):
    batcher = new_batcher(model, slots=16, wrap=Recorder)
    for start in range(12):
        submit(batcher, OTHER[start : start + 60])
    batcher.step()
    assert batcher.engine.model.backend.shapes == [(model.backend.pace.prefill_tokens // 60, 60)]


# Ends


@pytest.mark.parametrize("rounds", [0, 1, 4, 30])
def test_cancelling_frees_everything_at_once(model, rounds):
    batcher = new_batcher(model)
    ticket = submit(batcher, TEXT[:200], n=3, max_new_tokens=100, temperature=1.0)
    run(batcher, rounds)
    ticket.cancel()
    batcher.step()
    assert leaves_nothing(batcher)
    ends = [event for event in ticket if event.finish_reason]
    assert sorted(event.sample for event in ends) == [0, 1, 2]
    assert {(event.finish_reason, event.token) for event in ends} == {("cancelled", None)}
    assert batcher.counts.cancelled == 3


def test_time_is_up_while_waiting_and_while_running(model):
    clock = Clock()
    batcher = new_batcher(model, slots=1, clock=clock)
    tickets = [submit(batcher, TEXT[:9], deadline=5.0, max_new_tokens=200) for _ in range(2)]
    run(batcher, 3)
    clock.now = 5.0
    batcher.step()
    assert leaves_nothing(batcher)
    running, waiting = (list(ticket) for ticket in tickets)
    assert [event.finish_reason for event in running] == [None, None, None, "timeout"]
    assert [event.finish_reason for event in waiting] == ["timeout"]


def failing(bad):
    return lambda backend: FailingBackend(backend, bad)


def test_a_failing_request_harms_no_other(model):
    others = [TEXT[:90], OTHER[:90]]
    want = [alone(model, prompt) for prompt in others]
    seen = {token for token, *_ in (*want[0][0], *want[1][0])}.union(*others)
    bad = min(set(range(256)) - seen)
    batcher = new_batcher(model, wrap=failing(bad))
    tickets = [submit(batcher, prompt) for prompt in (others[0], [*TEXT[:70], bad], others[1])]
    run(batcher)
    with pytest.raises(GearError) as caught:
        list(tickets[1])
    assert caught.value.code is ErrorCode.NON_FINITE_ACTIVATION
    assert [answer(tickets[0]), answer(tickets[2])] == want
    assert batcher.counts.failed == 1
    assert leaves_nothing(batcher)


def test_a_failing_sample_ends_its_request(model):
    options = {"n": 2, "max_new_tokens": 40, "temperature": 3.0, "seed": 1}
    bits = alone(model, TEXT[:9], **options)
    bad = next(token for token, *_ in bits[1] if token not in {one[0] for one in bits[0]})
    batcher = new_batcher(model, wrap=failing(bad))
    ticket = submit(batcher, TEXT[:9], **options)
    run(batcher)
    with pytest.raises(GearError):
        list(ticket)
    assert batcher.counts.failed == 2
    assert leaves_nothing(batcher)


def test_logprobs_are_those_of_the_model(model):
    batcher = new_batcher(model)
    logits = []
    step = batcher.engine.step
    batcher.engine.step = lambda rows: logits.extend(step(rows)) or logits[-1:]
    events = submit(batcher, TEXT[:20], temperature=1.0, seed=3)
    run(batcher)
    for event, logits_V in zip(events, logits, strict=True):
        want_V = logits_V - np.logaddexp.reduce(logits_V.astype(np.float64))
        assert event.logprob == pytest.approx(want_V[event.token])
        ((likeliest, value),) = event.top_logprobs
        assert likeliest == want_V.argmax()
        assert value == pytest.approx(want_V.max())
