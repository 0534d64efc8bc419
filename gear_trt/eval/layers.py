"""What a cache does to each layer by itself: errors of keys, values and attention outputs.

Every layer gets the queries, keys and values of the uncompressed model, so that its errors are its
own. Errors are normalized mean squared errors. That of keys counts every channel alike, which
queries do not: judge by the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gear_trt.bench.progress import Progress
from gear_trt.errors import ErrorCode, GearError
from gear_trt.eval.candidate import DENSE_ATTENTION, Candidate, Decoder, dense_attention
from gear_trt.eval.contest import Contest, network_of
from gear_trt.eval.divergence import UNSCORED
from gear_trt.eval.steps import SLICE
from gear_trt.torch.layer import GearLayer

EVAL_LAYERS = "eval-layers"
_RECORDING = "gear-recording"


class LayerRow(BaseModel):
    """Errors of one layer.

    Attributes:
        benchmark: `eval-layers`.
        model: Name of the model.
        text: Name of the text.
        candidate: Name of the cache.
        layer: Index.
        key_error: Of the keys held, the newest ones included.
        value_error: Of the values held.
        output_error: Of the attention's output, first tokens left out.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    benchmark: str = EVAL_LAYERS
    model: str
    text: str
    candidate: str
    layer: int
    key_error: float
    value_error: float
    output_error: float


@dataclass(frozen=True)
class Attended:
    """What the attention of one layer was called with, and what it returned.

    Attributes:
        module: The attention module.
        query_BNTD: [B, N, T, D].
        key_BHTD: [B, H, T, D].
        value_BHTD: [B, H, T, D].
        output_BTND: [B, T, N, D].
        keywords: Further arguments of the attention function.
    """

    module: torch.nn.Module
    query_BNTD: Tensor
    key_BHTD: Tensor
    value_BHTD: Tensor
    output_BTND: Tensor
    keywords: dict[str, Any]


_recorded: list[Attended] = []


def measure(
    contest: Contest, tokens_1T: NDArray[np.int64], progress: Progress, *, text_name: str
) -> Iterator[list[LayerRow]]:
    """Yield the errors of all layers, one cache after the other.

    Args:
        contest: Of a transformers model.
        tokens_1T: [1, T] token ids.
        progress: Told which cache runs.
        text_name: What rows call the text.

    Raises:
        GearError: `BAD_REQUEST` for models with sliding windows or soft caps.
    """
    name, model = contest.subject.name, network_of(contest).model
    progress("uncompressed", text_name, 0.0)
    attended = record(model, torch.from_numpy(tokens_1T))
    for index, cache in enumerate(contest.caches):
        progress(cache.name, text_name, index / len(contest.caches))
        yield list(layer_errors(model, cache, attended, model_name=name, text_name=text_name))


@torch.inference_mode()
def record(model: Any, tokens_1T: Tensor) -> list[Attended]:  # noqa: ANN401 - untyped
    """Run one sequence without a cache and return what every layer attended to.

    Args:
        model: A model of transformers, in eval mode.
        tokens_1T: [1, T] token ids.

    Raises:
        GearError: `BAD_REQUEST` for models with sliding windows or soft caps.
    """
    if dense_attention(model.config) != DENSE_ATTENTION:
        _refuse("soft caps")
    used = model.config._attn_implementation
    model.set_attn_implementation(_RECORDING)
    try:
        model(tokens_1T, use_cache=False)
        layers = list(_recorded)
    finally:
        _recorded.clear()
        model.set_attn_implementation(used)
    if any(layer.keywords["sliding_window"] for layer in layers):
        _refuse("sliding windows")
    return layers


def layer_errors(
    model: Any,  # noqa: ANN401 - untyped
    candidate: Candidate,
    layers: list[Attended],
    *,
    model_name: str,
    text_name: str,
) -> Iterator[LayerRow]:
    """Yield the errors of every layer.

    Args:
        model: A model of transformers.
        candidate: The kind of cache.
        layers: What `record` returned for it.
        model_name: What rows call the model.
        text_name: What rows call the text.
    """
    cache = Decoder(model, candidate).cache
    first = max(UNSCORED, candidate.buffer)
    for index, (layer, attended) in enumerate(zip(cache.layers, layers, strict=True)):
        output_BTND, keys_BHTD, values_BHTD = _through(layer, attended, candidate.attention)
        yield LayerRow(
            model=model_name,
            text=text_name,
            candidate=candidate.name,
            layer=index,
            key_error=_error(keys_BHTD, attended.key_BHTD),
            value_error=_error(values_BHTD, attended.value_BHTD),
            output_error=_error(output_BTND[:, first:], attended.output_BTND[:, first:]),
        )


@torch.inference_mode()
def _through(
    layer: Any,  # noqa: ANN401 - untyped
    attended: Attended,
    attention: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs [B, T, N, D], keys and values [B, H, T, D] of a layer fed in slices."""
    attend = ALL_ATTENTION_FUNCTIONS[attention or DENSE_ATTENTION]
    outputs = []
    keys_BHTD = values_BHTD = torch.empty(0)
    for start in range(0, attended.query_BNTD.shape[2], SLICE):
        part = slice(start, start + SLICE)
        query_BNSD = attended.query_BNTD[:, :, part]
        keys_BHTD, values_BHTD = layer.update(
            attended.key_BHTD[:, :, part], attended.value_BHTD[:, :, part]
        )
        mask = None
        if attention is None:
            mask = _causal(query_BNSD.shape[2], keys_BHTD.shape[2])
        output, _ = attend(
            attended.module, query_BNSD, keys_BHTD, values_BHTD, mask, **attended.keywords
        )
        outputs.append(output)
    if isinstance(layer, GearLayer):
        keys_BHTD, values_BHTD = (side[None] for side in layer.decompressed(0))
    return torch.cat(outputs, dim=1), keys_BHTD, values_BHTD


def _causal(queries: int, keys: int) -> Tensor:
    """Mask [1, 1, S, T]: the last key is that of the last query."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]


def _error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).square().sum() / want.double().square().sum())


def _refuse(what: str) -> NoReturn:
    raise GearError(
        ErrorCode.BAD_REQUEST,
        f"errors per layer need plain attention over all tokens, and this model has {what}",
        hint="use `gear eval text`, which measures the whole model",
    )


def _record(
    module: torch.nn.Module,
    query_BNTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    **keywords: Any,  # noqa: ANN401 - whatever the model passes on
) -> tuple[Tensor, None]:
    """Attend as usual, and remember what to."""
    attend = ALL_ATTENTION_FUNCTIONS[DENSE_ATTENTION]
    output, _ = attend(module, query_BNTD, key_BHTD, value_BHTD, attention_mask, **keywords)
    kept = {name: keywords.get(name) for name in ("scaling", "sliding_window")}
    _recorded.append(Attended(module, query_BNTD, key_BHTD, value_BHTD, output, kept))
    return output, None


AttentionInterface.register(_RECORDING, _record)
AttentionMaskInterface.register(_RECORDING, sdpa_mask)
