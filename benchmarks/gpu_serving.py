"""The scheduler over every GPU backend of this machine: many requests together, and each alone.

python -m benchmarks.gpu_serving FOLDER    # an engine folder, with a TensorRT engine or without

On a GPU a row of a step depends in its last bits on the rows beside it, so that answers may part
where two tokens are all but equally likely. Counted is what each answer shares with the one that it
is alone, up to the first other token.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpu_outcomes import CANNOT, Outcome, report
from gear_trt.errors import ErrorCode, ExitStatus
from gear_trt.runtime.choice import BackendName
from gear_trt.runtime.model import Model
from gear_trt.runtime.options import GenerationOptions
from gear_trt.serving import Scheduler, Ticket

REQUESTS, COMMON_TOKENS, OWN_TOKENS, NEW_TOKENS = 8, 200, 100, 64
"""How many at a time, which tokens of their prompts are the same, and how long answers are."""
LEAST_EQUAL = 0.5
"""Of all tokens, the part that must be as alone. Answers that part early are no fault, as said
above; those that were computed from others' pages have next to nothing in common."""
CACHE_BYTES = 256_000_000
_CANNOT = (*CANNOT, ErrorCode.NO_GPU, ErrorCode.MISSING_FILE)
"""Errors of a machine that lacks something; a folder without a TensorRT engine lacks a file."""

OpenModel = Callable[[Path], Model]


@dataclass(frozen=True)
class ServingOutcome(Outcome):
    """How alike the answers of one backend were, and how fast they came.

    Attributes:
        equal: Tokens as alone, of `REQUESTS * NEW_TOKENS`.
        tokens_per_second: Of all requests together, prompts included.
        tokens_per_second_alone: Of one after the other.
    """

    kind = "serving"

    equal: int | None = None
    tokens_per_second: float | None = None
    tokens_per_second_alone: float | None = None


@dataclass(frozen=True)
class Answers:
    """Answers to all prompts.

    Attributes:
        tokens: Of each.
        seconds: From the first request to the last token.
    """

    tokens: list[list[int | None]]
    seconds: float


def gpu_models() -> dict[str, OpenModel]:
    """Return how to open a folder with each GPU backend."""
    names = (BackendName.ONNXRUNTIME_CUDA, BackendName.TENSORRT)
    return {name: partial(Model.open, backend=name) for name in names}


def run_backends(folder: Path, models: Mapping[str, OpenModel]) -> list[ServingOutcome]:
    """Serve the same requests over every backend; one that cannot run says why.

    Args:
        folder: An engine folder with a tokenizer.
        models: How to open it, by the backend's name.
    """
    return [_outcome(name, folder, open_model) for name, open_model in models.items()]


def _outcome(name: str, folder: Path, open_model: OpenModel) -> ServingOutcome:
    try:
        model = open_model(folder)
        prompts = _prompts(model.manifest.model.vocab_size)
        together, alone = (_serve(model, prompts, is_alone=is_alone) for is_alone in (False, True))
    except Exception as error:  # one backend's fault must not hide what the others do
        return ServingOutcome.of_failure(name, error, _CANNOT)
    return _compared(name, together, alone)


def _prompts(vocab_size: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    common = rng.integers(0, vocab_size, COMMON_TOKENS).tolist()
    return [[*common, *rng.integers(0, vocab_size, OWN_TOKENS).tolist()] for _ in range(REQUESTS)]


def _serve(model: Model, prompts: Sequence[list[int]], *, is_alone: bool) -> Answers:
    """Ask for all answers at once, or for one after the other; then look at the books.

    Raises:
        RuntimeError: The cache still holds something.
    """
    with Scheduler(model, max_cache_bytes=CACHE_BYTES, max_batch=REQUESTS) as scheduler:
        _tokens(_ask(scheduler, prompts[0][:1]))  # compiles what the first step compiles
        started = time.perf_counter()
        if is_alone:
            tokens = [_tokens(_ask(scheduler, prompt)) for prompt in prompts]
        else:
            tickets = [_ask(scheduler, prompt) for prompt in prompts]
            tokens = [_tokens(ticket) for ticket in tickets]
        seconds = time.perf_counter() - started
        scheduler.check()
        if held := scheduler.stats().cache_bytes_used:
            raise RuntimeError(f"{held} bytes of the cache are held after the last answer")
    return Answers(tokens, seconds)


def _ask(scheduler: Scheduler, prompt: list[int]) -> Ticket:
    options = GenerationOptions(max_new_tokens=NEW_TOKENS, eos_token_id=())
    return scheduler.submit(prompt, options, shared_prefix=min(COMMON_TOKENS, len(prompt)))


def _tokens(ticket: Ticket) -> list[int | None]:
    return [event.token for event in ticket]


def _compared(name: str, together: Answers, alone: Answers) -> ServingOutcome:
    equal = sum(map(_equal_tokens, together.tokens, alone.tokens))
    all_tokens = REQUESTS * NEW_TOKENS
    speed, alone_speed = (all_tokens / one.seconds for one in (together, alone))
    verdict = "ran" if equal >= LEAST_EQUAL * all_tokens else "failed"
    text = (
        f"{equal} of {all_tokens} tokens as alone, {REQUESTS} requests at {speed:.0f} tokens/s, "
        f"one after the other at {alone_speed:.0f}, nothing left in the cache"
    )
    return ServingOutcome(name, verdict, text, equal, speed, alone_speed)


def _equal_tokens(answer: list[int | None], other: list[int | None]) -> int:
    """Count tokens up to the first that differs."""
    return int(np.logical_and.accumulate(np.equal(answer, other)).sum())


def main() -> int:
    """Print what came of every backend; see `ExitStatus` for what is returned."""
    if len(sys.argv) != 2:
        print(__doc__)
        return ExitStatus.USAGE
    return report(run_backends(Path(sys.argv[1]), gpu_models()))


if __name__ == "__main__":
    sys.exit(main())
