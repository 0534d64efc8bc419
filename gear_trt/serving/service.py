"""From a checked request to its HTTP answer, whole or streamed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from gear_trt.serving.answers import Answers
from gear_trt.serving.failures import ApiError
from gear_trt.serving.limits import Limits, Seat, Seats
from gear_trt.serving.metrics import Metrics
from gear_trt.serving.prompts import Prompt, Prompts, TokenTexts
from gear_trt.serving.requests import ChatRequest, CompletionRequest, TextRequest
from gear_trt.serving.responses import ModelCard
from gear_trt.serving.scheduler import Scheduler
from gear_trt.serving.ticket import Ticket
from gear_trt.serving.writers import ChatWriter, Head, Piece, PieceMaker, TextWriter, Writer

CLIENT_LEFT = 499
"""Status, for metrics only, of a request whose client has gone; nginx' number."""
_DONE = b"data: [DONE]\n\n"


class Service:
    """Answers completions.

    Args:
        scheduler: Generates tokens.
        prompts: Encodes prompts.
        texts: The text of single tokens.
        limits: What requests may ask.
        metrics: Where everything is counted.
        card: The served model.
        fingerprint: Of software and layout.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        prompts: Prompts,
        texts: TokenTexts,
        limits: Limits,
        metrics: Metrics,
        card: ModelCard,
        fingerprint: str,
    ) -> None:
        self._scheduler = scheduler
        self._prompts = prompts
        self._texts = texts
        self._limits = limits
        self._seats = Seats(limits.answers)
        self._metrics = metrics
        self._card = card
        self._fingerprint = fingerprint

    async def chat(self, request: ChatRequest, http: Request) -> Response:
        """Answer a conversation.

        Raises:
            ApiError: For whatever keeps it from being answered.
        """
        messages = [message.rendered() for message in request.messages]
        writer = ChatWriter(self._head("chatcmpl", request), with_logprobs=request.logprobs)
        return await self._complete(request, [messages], writer, http)

    async def text(self, request: TextRequest, http: Request) -> Response:
        """Continue texts; raises as `chat` does."""
        with_logprobs = request.logprobs is not None
        writer = TextWriter(self._head("cmpl", request), with_logprobs=with_logprobs)
        prompts = [one if isinstance(one, str) else tuple(one) for one in request.prompt]
        return await self._complete(request, prompts, writer, http)

    def check_model(self, name: str) -> None:
        """Refuse any name but the served model's.

        Raises:
            ApiError: 404.
        """
        if name != self._card.id:
            raise ApiError(
                404,
                f"there is no model {name!r}: this server has {self._card.id!r}",
                code="model_not_found",
                param="model",
            )

    async def _complete(
        self, request: CompletionRequest, prompts: Sequence[Prompt], writer: Writer, http: Request
    ) -> Response:
        since = time.perf_counter()
        self.check_model(request.model)
        try:
            answers = await self._begin(request, prompts, since)
            pieces = PieceMaker(self._texts, with_logprobs=request.logprobs_per_token is not None)
            if request.stream:
                events = _stream(answers, pieces, writer, includes_usage=request.includes_usage)
                return EventStream(events, answers)
            return await _whole(answers, pieces, writer, http)
        except Exception as error:
            raise ApiError.of(error) from None

    async def _begin(
        self, request: CompletionRequest, prompts: Sequence[Prompt], since: float
    ) -> Answers:
        seat = self._seats.take(request.n * len(prompts))
        try:
            return self._submit(request, await self._prompts.encode(prompts), seat, since)
        except BaseException:
            seat.give_back()
            raise

    def _head(self, prefix: str, request: CompletionRequest) -> Head:
        return Head(
            id=f"{prefix}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=request.model,
            system_fingerprint=self._fingerprint,
        )

    def _submit(
        self, request: CompletionRequest, prompts: Sequence[list[int]], seat: Seat, since: float
    ) -> Answers:
        tickets: list[Ticket] = []
        try:
            for ids in prompts:
                room = self._card.max_model_len - len(ids) + 1
                ticket = self._scheduler.submit(
                    ids,
                    request.generation_options(room=room),
                    n=request.n,
                    timeout_s=self._limits.seconds,
                    logprobs=request.logprobs_per_token,
                )
                tickets.append(ticket)
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise
        return Answers(
            tickets,
            [self._metrics.watch(since) for _ in range(request.n * len(prompts))],
            seat=seat,
            prompt_tokens=sum(map(len, prompts)),
        )


class EventStream(StreamingResponse):
    """Server-sent events; whatever ends them, the answers are closed.

    Args:
        events: Encoded events.
        answers: What they are made of.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], answers: Answers) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()


async def _stream(
    answers: Answers, pieces: PieceMaker, writer: Writer, *, includes_usage: bool
) -> AsyncIterator[bytes]:
    try:
        async with aclosing(answers.events()) as events:
            async for index, event in events:
                piece = pieces.piece(event)
                if piece.text or piece.logprobs or piece.finish_reason:
                    yield _event(writer.chunk(index, piece))
    except Exception as error:
        yield _event(ApiError.of(error).body)
        return
    if includes_usage:
        yield _event(writer.usage(answers.usage()))
    yield _DONE


def _event(data: BaseModel) -> bytes:
    return f"data: {data.model_dump_json()}\n\n".encode()


async def _whole(answers: Answers, pieces: PieceMaker, writer: Writer, http: Request) -> Response:
    answering = asyncio.ensure_future(_gather(answers, pieces, writer))
    leaving = asyncio.ensure_future(_client_left(http))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else Response(status_code=CLIENT_LEFT)
    finally:
        answering.cancel()
        leaving.cancel()
        answers.close()


async def _gather(answers: Answers, pieces: PieceMaker, writer: Writer) -> Response:
    gathered: dict[int, Piece] = {}
    async with aclosing(answers.events()) as events:
        async for index, event in events:
            gathered.setdefault(index, Piece()).add(pieces.piece(event))
    return JSONResponse(writer.whole(gathered, answers.usage()).model_dump())


async def _client_left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
