"""A model whose caches are judged: what can be asked of it, and the one that transformers runs."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from gear_trt.eval.candidate import CacheFacts, Candidate, Decoder, exact, head_dim
from gear_trt.eval.steps import Steps

AnyCache = TypeVar("AnyCache", bound=CacheFacts, contravariant=True)


class Subject(Protocol[AnyCache]):
    """A model and the caches that it can decode over.

    Attributes:
        name: What rows call it.
        elements_per_token: K and V elements of a token, all layers.
        max_context: Longest sequence, tokens.
    """

    name: str
    elements_per_token: int
    max_context: int

    def exact(self) -> Steps:
        """Return it with an uncompressed cache."""
        ...

    def with_cache(self, cache: AnyCache) -> Steps:
        """Return it with a cache."""
        ...


class NetworkSubject:
    """Implements `Subject` for a transformers model.

    Args:
        name: What rows call it.
        model: In eval mode.
    """

    def __init__(self, name: str, model: Any) -> None:  # noqa: ANN401 - untyped
        self.name = name
        self.model = model
        text = model.config.get_text_config(decoder=True)
        kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        self.elements_per_token = 2 * text.num_hidden_layers * kv_heads * head_dim(model.config)
        self.max_context = int(text.max_position_embeddings)

    def exact(self) -> Steps:
        """See `Subject.exact`."""
        return Decoder(self.model, exact())

    def with_cache(self, cache: Candidate) -> Steps:
        """See `Subject.with_cache`."""
        return Decoder(self.model, cache)
