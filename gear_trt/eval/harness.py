"""lm-evaluation-harness over any cache: log-likelihoods and generations of `Steps`.

The harness's own transformers adapter computes log-likelihoods without a cache; here every token
older than a slice has gone through it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from pydantic import BaseModel, ConfigDict

from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.questions import written
from gear_trt.eval.steps import SLICE, Steps, feed

MAX_NEW_TOKENS = 256
"""Longest generation of tasks that set no limit."""
_ERROR_MARK = "_stderr"


class HarnessRow(BaseModel):
    """One metric of one task.

    Attributes:
        candidate: Name of the cache.
        task: Name of the task.
        metric: Name and filter of the metric.
        value: Its value.
        error: Its standard error; None where the harness gives none.
        samples: Documents judged.
    """

    model_config = ConfigDict(frozen=True)

    candidate: str
    task: str
    metric: str
    value: float
    error: float | None
    samples: int


class HarnessModel(TemplateLM):  # type: ignore[misc] # lm_eval is untyped
    """A model as lm-evaluation-harness wants it.

    Args:
        decoder: The model with a cache for one sequence.
        tokenizer: Of the model.
        max_context: Longest sequence; older tokens of longer requests are cut off.
    """

    def __init__(
        self,
        decoder: Steps,
        tokenizer: Any,  # noqa: ANN401 - untyped
        max_context: int,
    ) -> None:
        super().__init__()
        self._decoder = decoder
        self._max_context = max_context
        self.tokenizer = tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    def tok_encode(self, string: str, **_: Any) -> list[int]:  # noqa: ANN401
        """Return the token ids of a text."""
        return list(self.tokenizer.encode(string, add_special_tokens=False))

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:  # noqa: ANN401
        """Return the log-likelihood of each whole text."""
        every = ([self.eot_token_id, *self.tok_encode(item.args[0])] for item in requests)
        return [self._score(ids[:1], ids[1:])[0] for ids in every]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:  # noqa: ANN401
        """Return the greedy continuation of each context up to one of its stop texts."""
        answers = []
        for item in requests:
            context, options = item.args
            stops = options.get("until", [])
            limit = options.get("max_gen_toks", MAX_NEW_TOKENS)
            stops = [stops] if isinstance(stops, str) else stops
            answers.append(written(self._decoder, self.tokenizer, context, stops, limit))
        return answers

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[object, list[int], list[int]]],
        **_: Any,  # noqa: ANN401
    ) -> list[tuple[float, bool]]:
        return [self._score(context, continuation) for _, context, continuation in requests]

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Return the log-likelihood of a continuation, and whether it is the greedy one."""
        ids = [*context, *continuation][-(self._max_context + 1) :]
        logits_SV = torch.cat(
            [part[0] for _, part in feed(self._decoder, torch.tensor([ids[:-1]]), width=SLICE)]
        )
        count = min(len(continuation), len(ids) - 1)
        targets_S = torch.tensor(ids[len(ids) - count :])
        log_probs_SV = torch.log_softmax(logits_SV[-count:], dim=-1)
        likelihood = log_probs_SV.gather(1, targets_S[:, None]).sum()
        return float(likelihood), bool((log_probs_SV.argmax(dim=1) == targets_S).all())


def evaluate(
    name: str,
    model: HarnessModel,
    tasks: Sequence[str],
    *,
    include: Path | None,
    limit: int | None,
) -> list[HarnessRow]:
    """Run tasks of the harness.

    Args:
        name: Of the cache.
        model: With the cache.
        tasks: Names.
        include: Folder with tasks of one's own.
        limit: Documents of each task; None means all.

    Raises:
        GearError: `BAD_REQUEST` for a task that the harness does not know.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=None if include is None else str(include))
    for task in tasks:
        if task not in manager.all_tasks:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"lm-eval knows no task '{task}'",
                hint="list them with `lm-eval ls tasks`, or pass the folder of yours by --include",
            )
    found = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0
    )
    if found is None:
        raise RuntimeError("lm_eval returned nothing on the first of its ranks")
    return [
        HarnessRow(
            candidate=name,
            task=task,
            metric=metric,
            value=float(value),
            error=_number(metrics.get(_error_name(metric))),
            samples=found["n-samples"][task]["effective"],
        )
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float | int) and "," in metric and _ERROR_MARK not in metric
    ]


def _error_name(metric: str) -> str:
    name, _, kind = metric.partition(",")
    return f"{name}{_ERROR_MARK},{kind}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, float | int) else None
