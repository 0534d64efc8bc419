"""The HTTP application: routes, keys, limits, metrics, the built-in page."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST

from gear_trt.serving import failures
from gear_trt.serving.failures import ApiError
from gear_trt.serving.limits import Limits
from gear_trt.serving.metrics import Metrics
from gear_trt.serving.middleware import CountRequests, LimitBody
from gear_trt.serving.prompts import Prompts, TokenTexts
from gear_trt.serving.requests import ChatRequest, TextRequest
from gear_trt.serving.responses import ErrorBody, ModelCard, ModelList
from gear_trt.serving.scheduler import Scheduler
from gear_trt.serving.service import Service

PAGE = Path(__file__).parent / "page"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_BEARER = HTTPBearer(auto_error=False)


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        model_name: The name that requests ask for.
        limits: What requests may ask.
        api_key: What `/v1` asks for; None lets everyone in.
    """

    model_name: str
    limits: Limits
    api_key: str | None = None


def create_app(scheduler: Scheduler, settings: Settings) -> FastAPI:
    """Return the application.

    Args:
        scheduler: Generates tokens; whoever calls this starts and ends it.
        settings: What the server is told.
    """
    manifest, tokenizer = scheduler.model.manifest, scheduler.model.tokenizer
    limits, longest = settings.limits, scheduler.max_tokens
    metrics = Metrics(scheduler.stats)
    card = ModelCard(
        id=settings.model_name,
        created=int(time.time()),
        max_model_len=longest,
    )
    service = Service(
        scheduler,
        prompts=Prompts(
            tokenizer, manifest.model, max_tokens=min(limits.prompt_tokens or longest, longest)
        ),
        texts=TokenTexts(tokenizer),
        limits=limits,
        metrics=metrics,
        card=card,
        fingerprint=f"gear_trt-{version('gear-trt')}-{manifest.layout_hash}",
    )
    app = FastAPI(
        title="gear_trt",
        version=version("gear-trt"),
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    failures.install(app)
    app.add_middleware(LimitBody, limit=limits.body_bytes)
    app.add_middleware(CountRequests, count=metrics.count_request)
    app.include_router(_api(service, card, settings.api_key))
    app.include_router(_operation(scheduler, metrics))
    app.mount("/page", StaticFiles(directory=PAGE))
    return app


def _api(service: Service, card: ModelCard, api_key: str | None) -> APIRouter:
    router = APIRouter(
        prefix="/v1",
        dependencies=[Depends(_key_check(api_key))],
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )

    @router.post("/chat/completions", response_model=None)
    async def chat(request: ChatRequest, http: Request) -> Response:
        return await service.chat(request, http)

    @router.post("/completions", response_model=None)
    async def text(request: TextRequest, http: Request) -> Response:
        return await service.text(request, http)

    @router.get("/models")
    async def models() -> ModelList:
        return ModelList(data=[card])

    @router.get("/models/{name:path}")
    async def model(name: str) -> ModelCard:
        service.check_model(name)
        return card

    return router


def _operation(scheduler: Scheduler, metrics: Metrics) -> APIRouter:
    """Routes without a key: they change nothing and show counts only."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSONResponse:
        if scheduler.is_open:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "closed"}, status_code=503)

    @router.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS)

    return router


def _key_check(api_key: str | None) -> Callable[..., Awaitable[None]]:
    expected = None if api_key is None else api_key.encode()

    async def check(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        if expected is None:
            return
        key = given.credentials.encode() if given is not None else b""
        if not hmac.compare_digest(key, expected):
            raise ApiError(
                401,
                "the API key is missing or wrong",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return check
