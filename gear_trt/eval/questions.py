"""Sets of questions with a number for an answer, scored as the GEAR paper scores GSM8K.

A set is JSON lines with `question` and `answer`; a prompt with worked examples goes before each
question. The model writes greedily until it begins a question of its own; its answer is the last
number after the answer marker of the examples, or of all it wrote where the marker is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from gear_trt.bench.progress import Progress
from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.contest import Contest
from gear_trt.eval.greedy import continuations
from gear_trt.eval.steps import Steps

MARKER = "The answer is"
SOLUTION_MARKER = "####"
"""Before the number in the answers of GSM8K."""
TEMPLATE = "{examples}\n\nQuestion: {question}\n{cue}\n"
CUE = "Let's think step by step"
STOPS = ("\n\nQuestion:", "\nQuestion:")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Question:
    """A question and the number that answers it."""

    text: str
    answer: float


class QuestionRow(BaseModel):
    """One answer.

    Attributes:
        benchmark: `eval-questions`.
        model: Name of the model.
        candidate: Name of the cache.
        question: Index in the set.
        expected: The right number.
        answer: What was found in the model's text; None without any number.
        is_right: Both are equal.
        text: What the model wrote.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    benchmark: str = "eval-questions"
    model: str
    candidate: str
    question: int
    expected: float
    answer: float | None
    is_right: bool
    text: str


def read_questions(path: Path, count: int) -> list[Question]:
    """Read the first questions of a set.

    Raises:
        GearError: `BAD_REQUEST`, naming the line that is no question.
        OSError: The file cannot be read.
    """
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[:count], start=1):
        try:
            fields = json.loads(line)
            questions.append(Question(str(fields["question"]), _solution(fields["answer"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"{path}, line {number}, is no question",
                hint='write {"question": "…", "answer": "… #### 18"} on each line',
                detail=f"{type(error).__name__}: {error}",
            ) from None
    return questions


def ask(
    model: str,
    name: str,
    decoder: Steps,
    tokenizer: Any,  # noqa: ANN401 - untyped
    questions: Iterable[Question],
    *,
    examples: str,
    max_new_tokens: int,
) -> Iterator[QuestionRow]:
    """Yield an answer to each question.

    Args:
        model: Name of the model.
        name: Of the cache.
        decoder: The model with the cache.
        tokenizer: Of the model.
        questions: The set.
        examples: Worked examples that go before each question.
        max_new_tokens: Longest answer.
    """
    for index, question in enumerate(questions):
        prompt = TEMPLATE.format(examples=examples.strip(), question=question.text, cue=CUE)
        text = written(decoder, tokenizer, prompt, STOPS, max_new_tokens)
        answer = extract_answer(text)
        yield QuestionRow(
            model=model,
            candidate=name,
            question=index,
            expected=question.answer,
            answer=answer,
            is_right=answer == question.answer,
            text=text,
        )


def ask_all(
    contest: Contest,
    questions: Sequence[Question],
    *,
    examples: str,
    max_new_tokens: int,
    progress: Progress,
) -> Iterator[QuestionRow]:
    """Yield the answers of each cache, the uncompressed one first; arguments as in `ask`."""
    count = (len(contest.caches) + 1) * len(questions)
    done = 0
    for name, decoder in contest.decoders():
        for row in ask(
            contest.subject.name,
            name,
            decoder,
            contest.tokenizer,
            questions,
            examples=examples,
            max_new_tokens=max_new_tokens,
        ):
            done += 1
            progress(name, f"question {row.question + 1}", done / count)
            yield row


def written(
    decoder: Steps,
    tokenizer: Any,  # noqa: ANN401 - untyped
    prompt: str,
    stops: Iterable[str],
    max_new_tokens: int,
) -> str:
    """Return the greedy continuation of a prompt up to a stop text or the end of the text."""
    prompt_ids = torch.tensor([tokenizer.encode(prompt)])
    ids: list[int] = []
    text = ""
    for next_B in continuations(decoder, prompt_ids):
        if len(ids) == max_new_tokens or int(next_B[0]) == tokenizer.eos_token_id:
            break
        ids.append(int(next_B[0]))
        text = str(tokenizer.decode(ids))
        places = [text.find(stop) for stop in stops if stop in text]
        if places:
            return text[: min(places)]
    return text


def extract_answer(text: str) -> float | None:
    """Return the last number after the answer marker, or of the whole text without a marker."""
    return last_number(text.rpartition(MARKER)[2])


def _solution(text: str) -> float:
    number = last_number(text.rpartition(SOLUTION_MARKER)[2])
    if number is None:
        raise ValueError("its answer has no number")
    return number


def last_number(text: str) -> float | None:
    """Return the last number of a text, thousands separated by commas or not."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
