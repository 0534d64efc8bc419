"""lm-evaluation-harness over a cache: a task of our own, from local files only."""

import json

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.candidate import Decoder, exact
from gear_trt.eval.harness import HarnessModel, evaluate
from tests.eval.models import Letters, subject

CHOICES = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def decoder():
    return Decoder(subject().model, exact())


@pytest.fixture(scope="module")
def model(decoder):
    return HarnessModel(decoder, Letters(), 1024)


def test_log_likelihoods_are_those_of_the_model(decoder, model):
    context, continuation = [5, 6, 7] * 30, [9, 10, 11]
    decoder.reset()
    logits = decoder.step(torch.tensor([context + continuation[:-1]]))[0].log_softmax(-1)
    want = sum(float(logits[len(context) - 1 + i, token]) for i, token in enumerate(continuation))
    got, is_greedy = model._score(context, continuation)
    assert got == pytest.approx(want, abs=1e-3)
    assert not is_greedy
    best = int(logits[len(context) - 1].argmax())
    assert model._score(context, [best])[1]


def test_a_request_longer_than_the_context_loses_its_oldest_tokens(decoder):
    short = HarnessModel(decoder, Letters(), 20)
    ids = list(range(3, 60))
    assert short._score(ids, [4, 5]) == short._score(ids[-19:], [4, 5])


def test_a_local_task(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    documents = [
        {"question": f"{n} and {n}", "choices": ["one", "two"], "label": n % 2} for n in range(6)
    ]
    data = tmp_path / "documents.jsonl"
    data.write_text("\n".join(map(json.dumps, documents)))
    (tmp_path / "tiny.yaml").write_text(CHOICES.format(data=data))
    (row,) = evaluate("exact", model, ["tiny_choices"], include=tmp_path, limit=4)
    right = 0
    for document in documents[:4]:
        ids = Letters().encode(document["question"])
        scores = [
            model._score(ids, Letters().encode(f" {item}"))[0] for item in document["choices"]
        ]
        right += scores[document["label"]] == max(scores)
    assert (row.task, row.metric, row.samples) == ("tiny_choices", "acc,none", 4)
    assert row.value == right / 4


def test_a_task_that_nobody_knows(model, tmp_path):
    with pytest.raises(GearError) as caught:
        evaluate("exact", model, ["no_such_task"], include=tmp_path, limit=None)
    assert caught.value.code is ErrorCode.BAD_REQUEST
