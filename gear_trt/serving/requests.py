"""What a client may ask, by OpenAI's names; whatever is not done is refused, never ignored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from gear_trt.runtime.options import GenerationOptions

MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_TEXT_LOGPROBS = 5
TEXT_MAX_TOKENS = 16
"""Tokens of a text completion that sets no limit, as OpenAI has it."""

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),  # says nothing where no tool can be called
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),  # there are no tools to choose from
    "tools": ([],),
}
"""Parameters that the server does not have, and the values that ask for nothing it lacks."""

TokenRow = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_prompts(value: object) -> object:
    """Make one text, or one row of tokens, a list of one."""
    is_one_row = isinstance(value, list) and bool(value) and isinstance(value[0], int)
    return [value] if isinstance(value, str) or is_one_row else value


class _Object(BaseModel):
    """A JSON object of a request; an absent field and null are the same."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: object) -> object:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class StreamOptions(_Object):
    """How a stream is written.

    Attributes:
        include_usage: Whether a last chunk counts the tokens.
    """

    include_usage: bool = False


class TextPart(_Object):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Object):
    """One message of a conversation; `developer` is the newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_as_parts)]

    def rendered(self) -> dict[str, str]:
        """Return the message as chat templates take it."""
        text = "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class CompletionRequest(_Object):
    """What both kinds of completion take; the filters default to what OpenAI's default to.

    Attributes:
        model: The name that `/v1/models` lists.
        n: Answers per prompt.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Keep the most likely tokens that make up this probability.
        top_k: Keep the k most likely tokens; not one of OpenAI's.
        min_p: Keep tokens at least this likely, relative to the best; not one of OpenAI's.
        repetition_penalty: Above 1, makes tokens seen less likely; not one of OpenAI's.
        seed: Makes sampling repeatable; answer i of `n` is drawn with seed + i.
        stop: Strings that end the text; they are not part of it.
        stream: Send the answer as it comes.
        stream_options: Only with `stream`.
        user: Who asks, in the client's words; nothing depends on it.
    """

    model: str
    n: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[
        list[Annotated[str, StringConstraints(min_length=1)]],
        Field(max_length=MAX_STOPS),
        BeforeValidator(_as_list),
    ] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, fields: object) -> object:
        if not isinstance(fields, dict):
            return fields
        return {
            name: value
            for name, value in fields.items()
            if not any(_same(value, neutral) for neutral in _NEUTRAL.get(name, ()))
        }

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed where stream is true")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    @abstractmethod
    def logprobs_per_token(self) -> int | None:
        """Alternatives to report for every token; None where no log-probability is asked for."""

    @property
    @abstractmethod
    def token_limit(self) -> int | None:
        """Tokens to generate at most; None means as many as the context holds."""

    def generation_options(self, *, room: int) -> GenerationOptions:
        """Return the runtime's options.

        Args:
            room: Tokens that the context can still hold.
        """
        return GenerationOptions.checked(
            {
                "max_new_tokens": room if self.token_limit is None else self.token_limit,
                "do_sample": True,
                "temperature": self.temperature,
                "top_k": self.top_k,
                "top_p": None if self.top_p == 1 else self.top_p,
                "min_p": self.min_p,
                "repetition_penalty": self.repetition_penalty,
                "seed": self.seed,
                "stop": self.stop,
            }
        )


class ChatRequest(CompletionRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed where logprobs is true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens is the old name of max_completion_tokens: pass one")
        return self

    @property
    def logprobs_per_token(self) -> int | None:
        """See `CompletionRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        """See `CompletionRequest`."""
        return self.max_tokens or self.max_completion_tokens


class TextRequest(CompletionRequest):
    """`POST /v1/completions`."""

    prompt: Annotated[list[str | TokenRow], Field(min_length=1), BeforeValidator(_as_prompts)]
    max_tokens: Annotated[int, Field(ge=1)] = TEXT_MAX_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=MAX_TEXT_LOGPROBS)] | None = None

    @property
    def logprobs_per_token(self) -> int | None:
        """See `CompletionRequest`."""
        return self.logprobs

    @property
    def token_limit(self) -> int:
        """See `CompletionRequest`."""
        return self.max_tokens


def _same(value: object, neutral: object) -> bool:
    """Compare without Python's belief that True is 1 and False is 0."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
