"""Choosing the next token, with transformers' own logits processors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.options import GenerationOptions

if TYPE_CHECKING:
    import torch
    from transformers.generation.logits_process import LogitsProcessorList


class Sampler:
    """Chooses tokens by one set of options; draws are repeatable where a seed is set.

    Args:
        options: What the caller asked for.
    """

    def __init__(self, options: GenerationOptions) -> None:
        self._processors = _processors(options)
        self._random = _random(options.seed) if options.samples else None

    def choose(self, logits_V: NDArray[np.floating], token_ids: list[int]) -> int:
        """Choose the token that follows `token_ids`.

        Args:
            logits_V: [V] logits of the last token.
            token_ids: Prompt and answer so far.

        Raises:
            GearError: `NON_FINITE_ACTIVATION`.
        """
        if not np.isfinite(logits_V.max()):  # −inf is how a model forbids a token
            raise GearError(
                ErrorCode.NON_FINITE_ACTIVATION,
                f"the logits of token {len(token_ids) - 1} are not finite",
                hint="the model overflows: export it in float32, or check its weights",
            )
        if self._processors is None:
            return int(logits_V.argmax())
        with _one_torch_thread():
            logits_1V = _process(self._processors, logits_V, token_ids)
            return _draw(logits_1V, self._random) if self._random else int(logits_1V.argmax())


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """One row is too little work to share: threads would only wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _process(
    processors: LogitsProcessorList, logits_V: NDArray[np.floating], token_ids: list[int]
) -> torch.Tensor:
    import torch

    return processors(torch.LongTensor([token_ids]), torch.FloatTensor(logits_V)[None])


def _draw(logits_1V: torch.Tensor, random: torch.Generator) -> int:
    import torch

    return int(torch.multinomial(logits_1V.softmax(-1), 1, generator=random))


def _random(seed: int | None) -> torch.Generator:
    import torch

    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _processors(options: GenerationOptions) -> LogitsProcessorList | None:
    """Return the processors in transformers' order, or None where plain argmax is meant."""
    if not options.samples and options.repetition_penalty is None:
        return None
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors = LogitsProcessorList()
    if options.repetition_penalty is not None:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if not options.samples:
        return processors
    if options.temperature is not None:
        processors.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k is not None:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p is not None:
        processors.append(TopPLogitsWarper(options.top_p))
    if options.min_p is not None:
        processors.append(MinPLogitsWarper(options.min_p))
    return processors
