"""A loaded engine: `step` (tokens to logits), `stream` (text as it comes), `generate` (all)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.backend import PREFILL_SLICE, Logits
from gear_trt.runtime.cache import GearCache
from gear_trt.runtime.checks import in_range
from gear_trt.runtime.choice import backend_name
from gear_trt.runtime.generation import Generation, GenerationChunk, GenerationResult
from gear_trt.runtime.manifest import Manifest
from gear_trt.runtime.model import Model
from gear_trt.runtime.options import GenerationKeywords, GenerationOptions
from gear_trt.runtime.text import Messages, encode_prompt
from gear_trt.runtime.tokens import TokenRows, pad_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FloatArray = NDArray[np.float32]


def load(
    folder: str | Path,
    *,
    batch: int = 1,
    max_tokens: int | None = None,
    threads: int | None = None,
    backend: str = "auto",
) -> Engine:
    """Load an engine folder that `gear-export` wrote.

    Args:
        folder: The engine folder.
        batch: B, sequences that one step advances.
        max_tokens: Tokens that each sequence can hold; None means the model's longest context.
        threads: CPU threads of one step; None means all that this process may use.
        backend: A name of `BackendName`: what runs the graph, and where. `auto` takes the fastest
            that folder and machine allow.

    Raises:
        GearError: `MISSING_FILE`, `DAMAGED_ENGINE`, `LAYOUT_MISMATCH`, `MISSING_DEPENDENCY`,
            `MISSING_LIBRARY`, or `BAD_REQUEST` for arguments that do not fit the model. A GPU
            backend that is asked for by name: `NO_GPU`, `WRONG_GPU`, `UNSUPPORTED_VERSION` or
            `STALE_ENGINE`.

    Example:
        >>> with load("smollm2-gear") as engine:  # doctest: +SKIP
        ...     for chunk in engine.stream("Why is the sky blue?", max_new_tokens=64):
        ...         print(chunk.text, end="", flush=True)
    """
    model = Model.open(Path(folder), threads=threads, backend=backend_name(backend))
    return Engine(model, batch=batch, max_tokens=max_tokens)


class Engine:
    """A model and its compressed cache, for one thread; other threads take a `sibling()`.

    Attributes:
        cache: The compressed keys and values of all B sequences.

    Args:
        model: Weights, graph and tokenizer.
        batch: B.
        max_tokens: Tokens that each sequence can hold; None means the model's longest context.

    Raises:
        GearError: `BAD_REQUEST`, or `DAMAGED_ENGINE` where graph and manifest do not fit.
    """

    def __init__(self, model: Model, *, batch: int = 1, max_tokens: int | None = None) -> None:
        self._model = model
        longest = model.manifest.model.max_context
        self.cache = GearCache(
            model.manifest.layers,
            batch=in_range("batch", batch, 1),
            max_tokens=in_range(
                "max_tokens", longest if max_tokens is None else max_tokens, 1, longest
            ),
            memory=model.backend.memory,
        )
        self._graph = model.backend.bind(self.cache)

    def __enter__(self) -> Self:
        """Return the engine itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the engine."""
        self.close()

    def close(self) -> None:
        """Free the cache and, with the last sibling, the weights; the engine has ended."""
        del self._graph, self.cache, self._model

    def sibling(self, *, batch: int = 1, max_tokens: int | None = None) -> Engine:
        """Return an engine with the same weights and an empty cache of its own."""
        return Engine(self._model, batch=batch, max_tokens=max_tokens)

    @property
    def manifest(self) -> Manifest:
        """What the engine folder says of itself."""
        return self._model.manifest

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the engine folder.

        Raises:
            GearError: `MISSING_FILE`, or `DAMAGED_ENGINE`.
        """
        return self._model.tokenizer

    def step(self, tokens: TokenRows, *, all_logits: bool = False) -> FloatArray:
        """Append tokens to every sequence and return what the model expects next.

        Args:
            tokens: One row of token ids per sequence: an array [B, S], or rows of unequal length;
                an empty row leaves its sequence as it is.
            all_logits: Return the logits of every new token, not only of the last ones.

        Returns:
            [B, vocab_size] float32 of each sequence's last new token, or [B, S, vocab_size] with
            `all_logits`, S being the longest row. Entries without a token are NaN.

        Raises:
            GearError: `BAD_REQUEST`, `EMPTY_PROMPT`, `CONTEXT_EXCEEDED`; `NON_FINITE_ACTIVATION`,
                which leaves the cache empty.
        """
        batch, model = self.cache.batch, self.manifest.model
        tokens_BS, lengths = pad_rows(tokens, batch=batch, model=model)
        for held, new in zip(self.cache.lengths.tolist(), lengths.tolist(), strict=True):
            self._check_room(held, new)
        last_BV = np.full((batch, model.vocab_size), np.nan, np.float32)
        every: list[FloatArray] = []
        width = max(1, PREFILL_SLICE // batch)
        for start in range(0, tokens_BS.shape[1], width):
            slice_BS = np.ascontiguousarray(tokens_BS[:, start : start + width])
            new_lengths = np.clip(lengths - start, 0, slice_BS.shape[1]).astype(np.int32)
            logits_BSV = self._run(slice_BS, new_lengths)
            grown = np.flatnonzero(new_lengths)
            last_BV[grown] = logits_BSV[grown, new_lengths[grown] - 1]
            if all_logits:
                every.append(_without_padding(logits_BSV, new_lengths))
        return np.concatenate(every, axis=1) if all_logits else last_BV

    def stream(
        self,
        prompt: str | Messages,
        *,
        chat: bool = True,
        reuse_cache: bool = False,
        cancel: threading.Event | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> Iterator[GenerationChunk]:
        """Generate text, one chunk per token.

        Args:
            prompt: Text, or a conversation: messages with `role` and `content`.
            chat: Wrap text as a user's message where the tokenizer has a chat template.
            reuse_cache: Keep what the cache holds where the prompt starts with it, as the next turn
                of a conversation does. By default the cache is emptied first.
            cancel: Ends the generation when set, also from another thread.
            **options: See `GenerationOptions`.

        Raises:
            GearError: `EMPTY_PROMPT`, `CONTEXT_EXCEEDED`, `BAD_REQUEST`, those of `tokenizer` and
                those of `step`.
        """
        checked = GenerationOptions.checked(options)
        if self.cache.batch != 1:
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"text is generated for one sequence, this engine has batch={self.cache.batch}",
                hint="use step(), or a sibling() with batch=1",
            )
        held = self.cache.tokens_held() if reuse_cache else []
        prompt_ids = encode_prompt(self.tokenizer, prompt, chat=chat, held=held)
        self._check_room(0, len(prompt_ids))
        generation = Generation(self, prompt_ids, checked, cancel=cancel)
        return generation.chunks(reuse_cache=reuse_cache)

    def generate(
        self,
        prompt: str | Messages,
        *,
        chat: bool = True,
        reuse_cache: bool = False,
        cancel: threading.Event | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> GenerationResult:
        """Generate text and return all of it; arguments and errors as in `stream`."""
        return GenerationResult.of(
            self.stream(prompt, chat=chat, reuse_cache=reuse_cache, cancel=cancel, **options)
        )

    def _run(self, tokens_BS: NDArray[np.int64], new_lengths: NDArray[np.int32]) -> Logits:
        try:
            logits_BSV = self._graph.run(tokens_BS, new_lengths)
            self.cache.advance(tokens_BS, new_lengths)
        except BaseException:
            self.cache.reset()  # layers before the failing one have appended already
            raise
        return logits_BSV

    def _check_room(self, held: int, new: int) -> None:
        room, longest = self.cache.max_tokens, self.manifest.model.max_context
        if held + new <= room:
            return
        remedy = (
            f"load the engine with max_tokens={held + new} or more"
            if held + new <= longest
            else f"shorten the text: the model's longest context is {longest} tokens"
        )
        raise GearError(
            ErrorCode.CONTEXT_EXCEEDED,
            f"{held + new} tokens ({held} held, {new} new) do not fit: this engine holds {room}",
            hint=remedy,
        )


def _without_padding(logits_BSV: Logits, new_lengths: NDArray[np.int32]) -> FloatArray:
    is_padding_BS = np.arange(logits_BSV.shape[1]) >= new_lengths[:, None]
    every = np.asarray(logits_BSV)
    return np.where(is_padding_BS[:, :, None], np.float32(np.nan), every).astype(np.float32)
