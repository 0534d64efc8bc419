"""The part of `make gpu-check` that serves requests: what runs, what fails, what is not run."""

import numpy as np
import pytest
import torch

from benchmarks import gpu_serving
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.model import Model
from gear_trt.runtime.paged_cache import PagedCache
from gear_trt.serving import scheduler as scheduler_module
from tests.onnxruntime.emulated import emulated_model
from tests.runtime.device import device_model
from tests.runtime.folders import write_engine
from tests.serving.wrapped import Wrapped


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engines") / "engine")


@pytest.fixture
def few_tokens(monkeypatch):
    for name, tokens in (("COMMON_TOKENS", 70), ("OWN_TOKENS", 5), ("NEW_TOKENS", 4)):
        monkeypatch.setattr(gpu_serving, name, tokens)


class Confused(Wrapped):
    """A backend that takes the rows of a step for one another."""

    def run(self, tokens_BS, new_lengths):
        return np.asarray(self.graph.run(tokens_BS, new_lengths))[::-1]


class Forgetful(PagedCache):
    """A cache that does not take back what the sequence of buffer row 0 holds."""

    def close(self, sequence):
        if sequence.slot:
            super().close(sequence)


def confused_model(folder):
    model = device_model(folder)
    return Model(folder, model.manifest, Confused(model.backend))


def missing(folder):
    raise GearError(ErrorCode.MISSING_DEPENDENCY, "there is none", hint="install it")


def broken(folder):
    raise RuntimeError("TensorRT refuses to run the engine")


def test_requests_are_served_together_and_alone(folder, few_tokens, emulated):
    (outcome,) = gpu_serving.run_backends(folder, {"emulated": emulated_model})
    assert outcome.verdict == "ran", outcome
    row = outcome.row()
    assert (row["kind"], row["equal"]) == ("serving", 8 * 4)
    assert min(row["tokens_per_second"], row["tokens_per_second_alone"]) > 0


@pytest.mark.parametrize(
    ("open_model", "verdict", "text"),
    [
        (confused_model, "failed", " of 32 tokens as alone"),
        (missing, "not run", "there is none (install it)"),
        (broken, "failed", "RuntimeError: TensorRT refuses"),
    ],
)
def test_what_is_wrong_is_told(folder, few_tokens, open_model, verdict, text):
    (outcome,) = gpu_serving.run_backends(folder, {"one": open_model})
    assert outcome.verdict == verdict
    assert text in str(outcome)


def test_what_is_left_in_the_cache_is_a_failure(folder, few_tokens, monkeypatch):
    monkeypatch.setattr(scheduler_module, "PagedCache", Forgetful)
    (outcome,) = gpu_serving.run_backends(folder, {"leaky": device_model})
    assert outcome.verdict == "failed"
    assert "bytes of the cache are held" in outcome.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run(folder):
    outcomes = gpu_serving.run_backends(folder, gpu_serving.gpu_models())
    assert [outcome.verdict for outcome in outcomes] == ["not run", "not run"]
