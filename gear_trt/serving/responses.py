"""What the server answers, by OpenAI's names."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

OpenAIFinish = Literal["stop", "length"]


class CachedTokens(BaseModel):
    """Tokens of the prompt that another request had computed already."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of one request, all its answers together; the prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TokenLogprob(BaseModel):
    """A token and its log-probability, before temperature and filters.

    Attributes:
        token: Its text.
        logprob: Natural logarithm.
        bytes: Its UTF-8 bytes; None where the token is a part of a character.
    """

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobs(TokenLogprob):
    """A token of the answer and the most likely ones in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat answer, one item per token."""

    content: list[TokenLogprobs]
    refusal: None = None


class TextLogprobs(BaseModel):
    """Log-probabilities of a text completion, one item per token in every list."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatMessage(BaseModel):
    """A whole answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatDelta(BaseModel):
    """What a chunk adds to the answer; fields that it does not touch are left out."""

    role: Literal["assistant"] | None = Field(None, exclude_if=lambda role: role is None)
    content: str | None = Field(None, exclude_if=lambda content: content is None)


class ChatChoice(BaseModel):
    """One of the `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: OpenAIFinish | None


class ChatChunkChoice(BaseModel):
    """One of the `n` answers, its next piece."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: OpenAIFinish | None = None


class TextChoice(BaseModel):
    """One of the answers to one of the prompts; in a stream, its next piece."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: OpenAIFinish | None = None


class _Answer(BaseModel):
    """What all answers carry.

    Attributes:
        id: Of the request.
        created: Unix time, seconds.
        model: The served name.
        system_fingerprint: Software and page layout: with the same one, a seed repeats an answer.
    """

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(_Answer):
    """The answer to `POST /v1/chat/completions`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class ChatCompletionChunk(_Answer):
    """One event of a streamed chat answer; the one with the usage has no choices."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextCompletion(_Answer):
    """The answer to `POST /v1/completions`; also one event of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """The served model.

    Attributes:
        id: The name to ask for.
        created: Unix time at which the server was started, seconds.
        owned_by: Always the software.
        max_model_len: Longest sequence, prompt and answer together, in tokens.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["gear_trt"] = "gear_trt"
    max_model_len: int


class ModelList(BaseModel):
    """The answer to `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """What went wrong: OpenAI's fields."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail
