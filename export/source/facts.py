"""What the files beside a model say of it: context, vocabulary, special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gear_trt.errors import ErrorCode, GearError

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")


@dataclass(frozen=True)
class SourceFacts:
    """What is known of a model besides its graph; None or () where nothing says.

    Attributes:
        name: File or folder name.
        architecture: Hugging Face `model_type`.
        vocab_size: Tokens of the vocabulary.
        max_context: Longest sequence, tokens.
        eos_token_ids: Tokens that end a generation.
        pad_token_id: Token that fills unequal batches.
    """

    name: str
    architecture: str | None
    vocab_size: int | None
    max_context: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None


def read_facts(name: str, folder: Path) -> SourceFacts:
    """Read the config files of a folder, as far as there are any.

    Raises:
        GearError: `DAMAGED_MODEL` for a file that is no JSON object.
    """
    genai = _read_json(folder / "genai_config.json").get("model", {})
    config = _read_json(folder / "config.json")
    generation = _read_json(folder / "generation_config.json")
    return facts_of(name, {"model_type": genai.get("type"), **genai, **config}, generation)


def facts_of(name: str, config: Mapping[str, Any], generation: Mapping[str, Any]) -> SourceFacts:
    """Return the facts of a config and a generation config, as transformers writes them."""
    text = {**config, **(config.get("text_config") or {})}
    eos = _first(generation.get("eos_token_id"), text.get("eos_token_id"))
    return SourceFacts(
        name=name,
        architecture=text.get("model_type"),
        vocab_size=text.get("vocab_size"),
        max_context=_first(*(text.get(key) for key in _CONTEXT_KEYS)),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        pad_token_id=_first(generation.get("pad_token_id"), text.get("pad_token_id")),
    )


def _first(*values: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    return next((value for value in values if value is not None), None)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is no JSON object")
    return content


def _damaged(path: Path, reason: str) -> GearError:
    return GearError(
        ErrorCode.DAMAGED_MODEL,
        f"{path} is damaged: {reason}",
        hint="get the file again; it can also be left out",
    )
