"""Facts of a routed model, from its files where they say, and else from its graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from gear_trt.errors import ErrorCode, GearError
from gear_trt.export.passes.sites import KvSite
from gear_trt.export.source.facts import SourceFacts
from gear_trt.runtime.manifest import ModelFacts


def model_facts(facts: SourceFacts, routed: ir.Graph, max_context: int) -> ModelFacts:
    """Return what the runtime must know of a model.

    Args:
        facts: What the model's files say.
        routed: Its graph, after `attach`.
        max_context: See `longest_context`.

    Raises:
        GearError: `MISSING_FILE` where the size of the vocabulary is not known.
    """
    eos = facts.eos_token_ids
    pad = facts.pad_token_id if facts.pad_token_id is not None else eos[0] if eos else 0
    return ModelFacts(
        source=facts.name,
        architecture=facts.architecture,
        vocab_size=_vocab_size(facts, routed.outputs[0]),
        max_context=max_context,
        eos_token_ids=eos,
        pad_token_id=pad,
    )


def longest_context(facts: SourceFacts, sites: Sequence[KvSite], max_context: int | None) -> int:
    """Return the user's choice, what the files say, or where rotary tables or old caches end.

    Raises:
        GearError: `MISSING_FILE` where nothing says, `BAD_CONFIG` where the choice is too long.
    """
    tables = [site.rotary.cos_cache.shape for site in sites if site.rotary is not None]
    rows = [shape[0] for shape in tables if shape is not None]
    rows += [site.capacity for site in sites if site.capacity is not None]
    longest = min((row for row in rows if isinstance(row, int)), default=None)
    chosen = max_context or facts.max_context or longest
    if chosen is None:
        raise _unknown(
            "the longest context of the model",
            "pass --max-context N, or put the model's config.json beside it",
        )
    if longest is None or chosen <= longest:
        return chosen
    if max_context is None:
        return longest
    raise GearError(
        ErrorCode.BAD_CONFIG,
        f"a context of {chosen} tokens is longer than the model's rotary tables or fixed caches: "
        f"{longest}",
        hint=f"pass --max-context {longest} or less",
    )


def _vocab_size(facts: SourceFacts, logits: ir.Value) -> int:
    width = logits.shape[-1] if logits.shape is not None else None
    vocab_size = width if isinstance(width, int) else facts.vocab_size
    if vocab_size is None:
        raise _unknown("the size of the vocabulary", "put the model's config.json beside it")
    return vocab_size


def _unknown(what: str, hint: str) -> GearError:
    return GearError(ErrorCode.MISSING_FILE, f"{what} is not known", hint=hint)
