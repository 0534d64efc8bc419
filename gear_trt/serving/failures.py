"""Failures as HTTP answers in OpenAI's form."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from gear_trt.errors import ErrorCode, GearError
from gear_trt.serving.responses import ErrorBody, ErrorDetail

logger = logging.getLogger(__name__)

_STATUS = {
    ErrorCode.BAD_REQUEST: (400, "bad_request"),
    ErrorCode.EMPTY_PROMPT: (400, "empty_prompt"),
    ErrorCode.CONTEXT_EXCEEDED: (400, "context_length_exceeded"),
    ErrorCode.QUEUE_FULL: (429, "server_full"),
    ErrorCode.CLOSED: (503, "server_closed"),
}


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: What is wrong and how to mend it.
        code: Machine-readable, OpenAI's where it has one.
        param: The parameter that is wrong.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers

    @classmethod
    def of(cls, error: Exception) -> ApiError:
        """Return what a client is told of an error; a bug of ours is logged, not shown."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, GearError):
            status, code = _STATUS.get(error.code, (500, error.code.code))
            return cls(status, f"{error.message} ({error.hint})", code=code)
        logger.error("a request failed", exc_info=error)
        return cls(500, "the server failed; its log has the cause")

    @property
    def body(self) -> ErrorBody:
        """The answer's body."""
        return ErrorBody(
            error=ErrorDetail(
                message=self.message, type=_type(self.status), param=self.param, code=self.code
            )
        )

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body.model_dump(), self.status, headers=self.headers)


def install(app: FastAPI) -> None:
    """Let an app answer every failure in OpenAI's form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _of_validation(error).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

    @app.exception_handler(ApiError)
    @app.exception_handler(GearError)
    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return ApiError.of(error).response()


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error"
    )


def _of_validation(error: RequestValidationError) -> ApiError:
    """Name the parameter that is wrong; of several, the first."""
    fault = error.errors()[0]
    param = ".".join(map(str, fault["loc"][1:])) or None
    if fault["type"] == "extra_forbidden":
        return ApiError(
            400,
            f"{param} is not supported by this server",
            code="unsupported_parameter",
            param=param,
        )
    message = fault["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, param=param)
