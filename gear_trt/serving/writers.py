"""From events to OpenAI's objects: chat and text completions, whole and streamed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from pydantic import BaseModel

from gear_trt.serving.failures import ApiError
from gear_trt.serving.prompts import TokenTexts
from gear_trt.serving.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    OpenAIFinish,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    TokenLogprobs,
    Usage,
)
from gear_trt.serving.ticket import TokenEvent


class Head(TypedDict):
    """What all objects of one request carry: see `responses`."""

    id: str
    created: int
    model: str
    system_fingerprint: str


@dataclass
class Piece:
    """Some of an answer, or all of it.

    Attributes:
        text: Its text.
        logprobs: Of its tokens, where they are asked for.
        finish_reason: Why the answer ends here; None where it goes on.
    """

    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: OpenAIFinish | None = None

    def add(self, piece: Piece) -> None:
        """Append a later piece."""
        self.text += piece.text
        self.logprobs += piece.logprobs
        self.finish_reason = piece.finish_reason


class Writer(Protocol):
    """Writes the objects of one kind of completion."""

    def chunk(self, index: int, piece: Piece) -> BaseModel:
        """Return a streamed object with the next piece of answer `index`."""
        ...

    def usage(self, usage: Usage) -> BaseModel:
        """Return the streamed object that counts the tokens."""
        ...

    def whole(self, answers: Mapping[int, Piece], usage: Usage) -> BaseModel:
        """Return all answers at once."""
        ...


class PieceMaker:
    """Makes pieces of events.

    Args:
        texts: The text of single tokens.
        with_logprobs: Whether the request asks for log-probabilities.
    """

    def __init__(self, texts: TokenTexts, *, with_logprobs: bool) -> None:
        self._texts = texts
        self._with_logprobs = with_logprobs

    def piece(self, event: TokenEvent) -> Piece:
        """Return what an event adds; the token that ends a text is not a part of it.

        Raises:
            ApiError: 504 where the time was up, 503 where somebody else cancelled the answer.
        """
        reason = event.finish_reason
        if reason == "timeout":
            raise ApiError(504, "the answer took longer than this server allows", code="timeout")
        if reason == "cancelled":
            raise ApiError(503, "the answer was cancelled", code="cancelled")
        ends_text = reason == "stop" and not event.text
        logprobs = [self._logprobs(event)] if self._with_logprobs and not ends_text else []
        return Piece(event.text, logprobs, reason)

    def _logprobs(self, event: TokenEvent) -> TokenLogprobs:
        if event.token is None or event.logprob is None:
            raise RuntimeError("the scheduler gave no log-probability")
        own = self._texts.logprob(event.token, event.logprob)
        others = [self._texts.logprob(token, logprob) for token, logprob in event.top_logprobs]
        return TokenLogprobs(**own.model_dump(), top_logprobs=others)


class ChatWriter:
    """Implements `Writer` for chat completions.

    Args:
        head: What all objects carry.
        with_logprobs: Whether the request asks for log-probabilities.
    """

    def __init__(self, head: Head, *, with_logprobs: bool) -> None:
        self._head = head
        self._with_logprobs = with_logprobs
        self._begun: set[int] = set()

    def chunk(self, index: int, piece: Piece) -> ChatCompletionChunk:
        """See `Writer.chunk`; the first of an answer says who speaks."""
        is_first = index not in self._begun
        self._begun.add(index)
        choice = ChatChunkChoice(
            index=index,
            delta=ChatDelta(
                role="assistant" if is_first else None,
                content=piece.text if is_first or piece.text else None,
            ),
            logprobs=ChatLogprobs(content=piece.logprobs) if piece.logprobs else None,
            finish_reason=piece.finish_reason,
        )
        return ChatCompletionChunk(**self._head, choices=[choice])

    def usage(self, usage: Usage) -> ChatCompletionChunk:
        """See `Writer.usage`."""
        return ChatCompletionChunk(**self._head, choices=[], usage=usage)

    def whole(self, answers: Mapping[int, Piece], usage: Usage) -> ChatCompletion:
        """See `Writer.whole`."""
        choices = [self._choice(index, answer) for index, answer in sorted(answers.items())]
        return ChatCompletion(**self._head, choices=choices, usage=usage)

    def _choice(self, index: int, answer: Piece) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=ChatMessage(content=answer.text),
            logprobs=ChatLogprobs(content=answer.logprobs) if self._with_logprobs else None,
            finish_reason=answer.finish_reason,
        )


class TextWriter:
    """Implements `Writer` for text completions; arguments as for `ChatWriter`."""

    def __init__(self, head: Head, *, with_logprobs: bool) -> None:
        self._head = head
        self._with_logprobs = with_logprobs
        self._offsets: dict[int, int] = defaultdict(int)

    def chunk(self, index: int, piece: Piece) -> TextCompletion:
        """See `Writer.chunk`."""
        return TextCompletion(**self._head, choices=[self._choice(index, piece)])

    def usage(self, usage: Usage) -> TextCompletion:
        """See `Writer.usage`."""
        return TextCompletion(**self._head, choices=[], usage=usage)

    def whole(self, answers: Mapping[int, Piece], usage: Usage) -> TextCompletion:
        """See `Writer.whole`."""
        choices = [self._choice(index, answer) for index, answer in sorted(answers.items())]
        return TextCompletion(**self._head, choices=choices, usage=usage)

    def _choice(self, index: int, piece: Piece) -> TextChoice:
        return TextChoice(
            index=index,
            text=piece.text,
            logprobs=self._logprobs(index, piece) if self._with_logprobs else None,
            finish_reason=piece.finish_reason,
        )

    def _logprobs(self, index: int, piece: Piece) -> TextLogprobs:
        offsets = []
        for item in piece.logprobs:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(item.token)
        return TextLogprobs(
            tokens=[item.token for item in piece.logprobs],
            token_logprobs=[item.logprob for item in piece.logprobs],
            top_logprobs=[
                # Of tokens with the same text, parts of characters, the likeliest is shown.
                {other.token: other.logprob for other in reversed(item.top_logprobs)}
                for item in piece.logprobs
            ],
            text_offset=offsets,
        )
