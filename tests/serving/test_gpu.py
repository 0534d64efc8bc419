"""Serving over a GPU backend on the emulated GPU: the answers of the CPU, and clean books."""

import numpy as np
import pytest
import torch

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.device.graph import DeviceGraph
from gear_trt.runtime.model import Model
from gear_trt.runtime.options import GenerationOptions
from gear_trt.serving import Scheduler
from gear_trt.spec import CompressionConfig
from tests.cuda.conftest import emulated  # noqa: F401 - a fixture
from tests.graphs import ToyModel
from tests.onnxruntime.emulated import emulated_model
from tests.runtime.device import device_model
from tests.runtime.folders import with_infinite_token, write_engine
from tests.serving.test_batcher import alone, answer, leaves_nothing, new_batcher, run, submit

TEXT = np.random.default_rng(1).integers(0, 200, 400).tolist()
OTHER = np.random.default_rng(2).integers(0, 200, 400).tolist()
EXACT = ToyModel(config=CompressionConfig.preset("exact"))
"""Pages without loss: no token may hang on how CPU and GPU round queries."""
REQUESTS = (
    {"prompt": OTHER[:120], "max_new_tokens": 12},
    {"prompt": TEXT[:185], "max_new_tokens": 10, "temperature": 3.0, "seed": 1, "n": 2},
    {"prompt": [*TEXT[:140], *OTHER[:60]], "mark": 140},
    {"prompt": [*TEXT[:140], *OTHER[60:80]], "mark": 140},
    {"prompt": OTHER[200:320], "max_new_tokens": 12, "repetition_penalty": 1.3},
)


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "exact"
    return Model.open(write_engine(folder, EXACT), threads=1)


@pytest.fixture(scope="module")
def gpu(cpu, emulated):  # noqa: F811
    return emulated_model(cpu._folder)


@pytest.fixture(scope="module")
def answers(cpu):
    """The answers to REQUESTS, on the CPU and each alone."""
    return [alone(cpu, **request) for request in REQUESTS]


def assert_alike(got, want):
    """The same tokens, of about the same probabilities."""
    assert got.keys() == want.keys()
    for sample, bits in want.items():
        assert [token for token, *_ in got[sample]] == [token for token, *_ in bits]
        logprobs = ([logprob for _, logprob, *_ in one] for one in (got[sample], bits))
        np.testing.assert_allclose(*logprobs, atol=0.02)


@pytest.mark.parametrize(("pages", "preempts"), [(40, False), (3, True)])
def test_answers_are_those_of_the_cpu(gpu, answers, pages, preempts):
    batcher = new_batcher(gpu, pages=pages)
    tickets = [submit(batcher, **request) for request in REQUESTS]
    run(batcher)
    for ticket, want in zip(tickets, answers, strict=True):
        assert_alike(answer(ticket), want)
    assert (batcher.counts.preemptions > 0) == preempts
    assert batcher.counts.shared_tokens >= 140
    assert leaves_nothing(batcher)


def test_what_is_not_finite_ends_one_request_and_harms_no_other(answers, emulated, tmp_path):  # noqa: F811
    """A GPU's kernels go on after a fault (ADR 11): what they leave may be in nobody's way."""
    seen = {token for one in answers for bits in one.values() for token, *_ in bits}
    bad = min(set(range(200, EXACT.vocab_size)) - seen)  # nor do the prompts have it
    model = emulated_model(with_infinite_token(tmp_path / "engine", bad, EXACT))
    batcher = new_batcher(model, slots=3)
    first = submit(batcher, **REQUESTS[0])
    failing = submit(batcher, [*TEXT[:90], bad, *TEXT[:9]])
    last = submit(batcher, **REQUESTS[4])
    run(batcher)
    with pytest.raises(GearError) as caught:
        list(failing)
    assert caught.value.code is ErrorCode.NON_FINITE_ACTIVATION
    assert batcher.counts.failed == 1
    assert_alike(answer(first), answers[0])
    assert_alike(answer(last), answers[4])
    others = [submit(batcher, **REQUESTS[index]) for index in (1, 2, 3)]  # every buffer row again
    run(batcher)
    for ticket, want in zip(others, answers[1:4], strict=True):
        assert_alike(answer(ticket), want)
    assert leaves_nothing(batcher)


def test_a_step_that_does_not_fit_the_memory_runs_row_by_row(cpu, answers, monkeypatch):
    empty_logits = DeviceGraph._empty_logits
    refused = []

    def little_room(self, batch, seq_len):
        if batch * seq_len > 80:
            refused.append((batch, seq_len))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty_logits(self, batch, seq_len)

    monkeypatch.setattr(DeviceGraph, "_empty_logits", little_room)
    batcher = new_batcher(device_model(cpu._folder))
    tickets = [submit(batcher, **REQUESTS[index]) for index in (0, 4)]
    run(batcher)
    assert refused == [(2, 64), (2, 56)]
    for ticket, index in zip(tickets, (0, 4), strict=True):
        assert_alike(answer(ticket), answers[index])
    assert leaves_nothing(batcher)


def test_prefixes_go_between_cpu_and_gpu(cpu, gpu, tmp_path):
    options = GenerationOptions(max_new_tokens=8, eos_token_id=())
    for source, target in ((cpu, gpu), (gpu, cpu)):
        with Scheduler(source, max_cache_bytes=2 << 20, max_batch=2) as scheduler:
            want = [event.token for event in scheduler.submit(TEXT[:185], options)]
            assert scheduler.save_prefix(tmp_path / "prefix", TEXT[:185]) == 128
        with Scheduler(target, max_cache_bytes=2 << 20, max_batch=2) as scheduler:
            assert scheduler.load_prefix(tmp_path / "prefix") == TEXT[:128]
            assert [event.token for event in scheduler.submit(TEXT[:185], options)] == want
            assert scheduler.stats().prefill_tokens == 57
            scheduler.check()


def test_a_cancelled_request_leaves_nothing(gpu):
    with Scheduler(gpu, max_cache_bytes=2 << 20, max_batch=2) as scheduler:
        options = GenerationOptions(max_new_tokens=300, temperature=1.0, eos_token_id=())
        ticket = scheduler.submit(TEXT[:70], options, n=2)
        next(iter(ticket))
        ticket.cancel()
        assert "cancelled" in {event.finish_reason for event in ticket}
        scheduler.check()
        assert scheduler.stats().cache_bytes_used == 0
