"""A process that serves an engine folder: its socket, its key, its signals, its end."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.choice import BackendName
from gear_trt.serving.app import Settings, create_app
from gear_trt.serving.scheduler import Scheduler

logger = logging.getLogger(__name__)

KEY_VARIABLE = "GEAR_API_KEY"
"""Environment variable with the API key; a command line can be read by every user."""


@dataclass(frozen=True)
class Place:
    """Where and how the process serves.

    Attributes:
        host: Address of this machine to listen on.
        port: 0 takes a free one.
        drain_seconds: What answers may take that have begun when the process is told to end.
        access_log: Write a line per request.
    """

    host: str
    port: int
    drain_seconds: int
    access_log: bool


@dataclass(frozen=True)
class Resources:
    """What the engine may use.

    Attributes:
        cache_bytes: Of pages and buffers.
        batch: Answers that are generated at the same time.
        threads: CPU threads; None means all that this process may use.
        backend: What runs the graph.
    """

    cache_bytes: int
    batch: int
    threads: int | None
    backend: BackendName


def serve(
    folder: Path,
    settings: Settings,
    *,
    place: Place,
    resources: Resources,
    announce: Callable[[str], None],
) -> None:
    """Serve until a signal comes, then let the answers that have begun end.

    Args:
        folder: The engine folder.
        settings: What the server is told.
        place: Where.
        resources: What the engine may use.
        announce: Is called with the address once it answers.

    Raises:
        GearError: Those of `Scheduler`; `BAD_REQUEST` where the address cannot be had.
    """
    with (
        bind(place.host, place.port) as bound,
        Scheduler(
            folder,
            max_cache_bytes=resources.cache_bytes,
            max_batch=resources.batch,
            max_waiting=settings.limits.answers,
            threads=resources.threads,
            backend=resources.backend,
        ) as scheduler,
    ):
        app = create_app(scheduler, settings)
        server = server_of(app, drain_seconds=place.drain_seconds, access_log=place.access_log)
        _warn_of_strangers(bound, settings)
        with _listening(bound), _signals_end_normally():
            announce(url_of(bound))
            server.run(sockets=[bound])


def read_api_key(file: Path | None) -> str | None:
    """Return the API key of a file, or else of the environment; None where there is none.

    Raises:
        GearError: `BAD_REQUEST` for an empty key.
    """
    key = os.environ.get(KEY_VARIABLE) if file is None else file.read_text().strip()
    if key == "":
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"the API key in {KEY_VARIABLE if file is None else file} is empty",
            hint="write a key there, for instance from `openssl rand -hex 32`, or leave it out",
        )
    return key


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has an address and does not listen yet.

    Args:
        host: Address of this machine.
        port: 0 takes a free one.

    Raises:
        GearError: `BAD_REQUEST` where the address cannot be had.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise _no_address(f"{host}, port {port}", error) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the address under which a socket's server is found on this machine."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_of(app: FastAPI, *, drain_seconds: int, access_log: bool) -> uvicorn.Server:
    """Return a server whose `run(sockets=[...])` serves until a signal comes."""
    config = uvicorn.Config(
        app,
        access_log=access_log,
        lifespan="off",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
    )
    return uvicorn.Server(config)


def _warn_of_strangers(bound: socket.socket, settings: Settings) -> None:
    address = bound.getsockname()[0]
    if settings.api_key is None and not ipaddress.ip_address(address).is_loopback:
        logger.warning("no API key is set: whoever reaches %s can use the server", address)


@contextmanager
def _listening(bound: socket.socket) -> Iterator[None]:
    try:
        bound.listen()
    except OSError as error:
        raise _no_address(url_of(bound), error) from None
    yield


@contextmanager
def _signals_end_normally() -> Iterator[None]:
    """Be there when uvicorn, which handles a signal and ends, sends the signal once more."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _no_address(where: str, error: OSError) -> GearError:
    return GearError(
        ErrorCode.BAD_REQUEST,
        f"cannot listen on {where}: {error.strerror or error}",
        hint="choose another --host or --port; port 0 takes a free one",
    )
