"""One sample of a request, as the batcher moves it along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gear_trt.runtime.answer import Answer
from gear_trt.runtime.options import GenerationOptions
from gear_trt.runtime.paged_cache import PagedSequence
from gear_trt.runtime.token_plan import TokenPlan
from gear_trt.serving.ticket import FinishReason, Ticket, TokenEvent


@dataclass(frozen=True)
class Request:
    """What a caller asked for.

    Attributes:
        ticket: Where its tokens go.
        prompt_ids: Tokens of the prompt.
        options: How each sample is generated.
        samples: How many answers are wanted.
        shared_prefix: Tokens of the prompt that other prompts start with as well.
        turn: Place in every queue, smaller first: seconds.
        deadline: Time at which the request ends, on the scheduler's clock; infinite for none.
        logprobs: Likeliest tokens to report with each token, 0 for the chosen one's logarithm only;
            None for no logarithms.
    """

    ticket: Ticket
    prompt_ids: tuple[int, ...]
    options: GenerationOptions
    samples: int
    shared_prefix: int
    turn: float
    deadline: float
    logprobs: int | None

    def options_of(self, sample: int) -> GenerationOptions:
        """Return the options of a sample: a seed counts up from sample to sample."""
        seed = self.options.seed
        return self.options.model_copy(update={"seed": None if seed is None else seed + sample})


@dataclass(eq=False)
class Job:
    """A sample that waits or runs.

    Attributes:
        request: The request it belongs to.
        sample: Index of the sample.
        order: Unique; breaks ties between equal turns.
        answer: Its tokens.
        plan: The steps that compute them.
        sequence: What it holds of the cache; None while it waits.
        to_fork: Whether the other samples are still to be made of it.
        shared_tokens: Tokens that it took from the cache when it first ran.
    """

    request: Request
    sample: int
    order: int
    answer: Answer
    plan: TokenPlan
    sequence: PagedSequence | None = None
    to_fork: bool = False
    shared_tokens: int = 0

    @property
    def place(self) -> tuple[float, int]:
        """Its place in every queue, smaller first."""
        return self.request.turn, self.order

    def emit(
        self,
        text: str,
        token: int | None,
        reason: FinishReason | None,
        logits_V: NDArray[np.floating] | None = None,
    ) -> None:
        """Hand an event to the reader."""
        wanted = self.request.logprobs
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if wanted is not None and token is not None and logits_V is not None:
            logprob, top = logprobs(logits_V, token, wanted)
        self.request.ticket.put(
            TokenEvent(
                sample=self.sample,
                token=token,
                text=text,
                finish_reason=reason,
                prompt_tokens=self.answer.prompt_tokens,
                shared_tokens=self.shared_tokens,
                generated_tokens=self.answer.generated_tokens,
                logprob=logprob,
                top_logprobs=top,
            )
        )


def logprobs(
    logits_V: NDArray[np.floating], token: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the logarithm of a token's probability, and the likeliest tokens with theirs.

    Args:
        logits_V: [V] logits.
        token: The token that was chosen.
        count: Likeliest tokens to return, fewer than V.
    """
    values_V = logits_V.astype(np.float64)
    values_V -= values_V.max()
    values_V -= np.log(np.exp(values_V).sum())
    likeliest = np.argpartition(-values_V, count)[:count]
    likeliest = likeliest[np.lexsort((likeliest, -values_V[likeliest]))]
    top = tuple((int(index), float(values_V[index])) for index in likeliest)
    return float(values_V[token]), top
