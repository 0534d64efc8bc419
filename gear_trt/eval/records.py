"""Rows of `gear eval`: what a cache cost a model on a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from gear_trt.bench.records import read_kinds
from gear_trt.eval.candidate import CacheFacts
from gear_trt.eval.divergence import Scores
from gear_trt.eval.steps import SLICE
from gear_trt.runtime.footprint import FP16_BYTES
from gear_trt.spec import ModelConfig
from gear_trt.spec.model_config import layer_ranges

EVAL = "eval"
_BITS = 8

AnyRow = TypeVar("AnyRow", bound=BaseModel)


class EvalRow(BaseModel):
    """One cache beside the uncompressed one, on one text.

    Every `_error` is half the width of a 95 % confidence interval.

    Attributes:
        benchmark: `eval`.
        model: Name of the model's file or folder.
        text: Name of the text's file.
        candidate: Name of the cache.
        kind: Whose format it is: `gear`, `kivi`, `onnxruntime`, …
        cache: The format, for people.
        is_simulated: The cache held the values that the format gives back, not the format.
        config: Compression config of all layers without one of their own; None for caches that
            our kernels do not read.
        layer_configs: Layers with a config of their own, and that.
        sequences: Sequences of the text, each over a cache of its own.
        context: Tokens of a sequence.
        slice: Tokens of a sequence per call.
        tokens: Tokens scored.
        bits_per_element: Of a compressed token, everything included.
        bytes_per_token: Likewise, K and V of all layers.
        buffer: Newest tokens that are uncompressed, at most: compare caches that are equal in it.
        fp16_bytes_per_token: What an FP16 cache takes.
        cache_bytes_per_token: What the cache had in use at the end of the sequences per token,
            residual buffers included; None for caches that our kernels do not read.
        kl: Mean KL divergence of the next-token distribution, nats.
        kl_error: Its confidence.
        top1: Part of the tokens at which both expect the same token most.
        top1_error: Its confidence.
        exact_perplexity: Of the text with the uncompressed cache.
        perplexity_ratio: Perplexity over that.
        perplexity_ratio_error: Its confidence.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # the environment is beside the fields

    benchmark: str = EVAL
    model: str
    text: str
    candidate: str
    kind: str
    cache: str
    is_simulated: bool
    config: dict[str, int] | None
    layer_configs: dict[str, dict[str, int]]
    sequences: int
    context: int
    slice: int
    tokens: int
    bits_per_element: float
    bytes_per_token: float
    buffer: int
    fp16_bytes_per_token: int
    cache_bytes_per_token: float | None
    kl: float
    kl_error: float
    top1: float
    top1_error: float
    exact_perplexity: float
    perplexity_ratio: float
    perplexity_ratio_error: float

    @property
    def place(self) -> tuple[object, ...]:
        """What makes a row the successor of another one."""
        return (self.model, self.text, self.candidate, self.buffer)


def make_row(
    cache: CacheFacts,
    scores: Scores,
    *,
    model: str,
    text: str,
    context: int,
    elements_per_token: int,
    cache_bytes: int | None,
) -> EvalRow:
    """Return the row of a cache.

    Args:
        cache: What was judged.
        scores: How it fared.
        model: Name of the model.
        text: Name of the text.
        context: Tokens of a sequence.
        elements_per_token: K and V elements of a token, all layers.
        cache_bytes: Bytes that the cache had in use at the end; None where it is not ours.
    """
    sequences = len(scores.divergence_BT)
    kl, top1, ratio = scores.kl, scores.top1, scores.perplexity_ratio
    return EvalRow(
        model=model,
        text=text,
        candidate=cache.name,
        kind=cache.kind,
        cache=cache.cache,
        is_simulated=cache.is_simulated,
        **_configs(cache.compression),
        sequences=sequences,
        context=context,
        slice=SLICE,
        tokens=scores.divergence_BT.size,
        bits_per_element=cache.bits_per_element,
        bytes_per_token=cache.bits_per_element * elements_per_token / _BITS,
        buffer=cache.buffer,
        fp16_bytes_per_token=elements_per_token * FP16_BYTES,
        cache_bytes_per_token=None if cache_bytes is None else cache_bytes / sequences / context,
        kl=kl.mean,
        kl_error=kl.error,
        top1=top1.mean,
        top1_error=top1.error,
        exact_perplexity=scores.exact_perplexity,
        perplexity_ratio=ratio.mean,
        perplexity_ratio_error=ratio.error,
    )


def read_rows(path: Path, kind: type[AnyRow]) -> list[AnyRow]:
    """Read the rows of one kind of a JSON lines file; others are left out.

    Raises:
        GearError: `BAD_REQUEST`, naming the line that is no row.
        OSError: The file cannot be read.
    """
    benchmark = kind.model_fields["benchmark"].default
    return read_kinds(path, {benchmark: kind}, command="gear eval")


def newest(rows: Sequence[EvalRow]) -> list[EvalRow]:
    """Keep the last row of each place, in the order of the first."""
    return list({row.place: row for row in rows}.values())


def _configs(compression: ModelConfig | None) -> dict[str, Any]:
    if compression is None:
        return {"config": None, "layer_configs": {}}
    return {
        "config": compression.base.model_dump(),
        "layer_configs": {
            layer_ranges(layers): config.model_dump() for layers, config in compression.special
        },
    }
