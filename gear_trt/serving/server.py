"""A process that serves: the socket, uvicorn, and how it ends."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from gear_trt.errors import ErrorCode, GearError


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: Address of this machine.
        port: 0 takes a free one.

    Raises:
        GearError: `BAD_REQUEST` where the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"cannot listen on {host}, port {port}: {error.strerror or error}",
            hint="choose another --host or --port; port 0 takes a free one",
        ) from None


def url_of(listening: socket.socket) -> str:
    """Return the address under which a socket's server is found on this machine."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_of(app: FastAPI, *, drain_seconds: int, access_log: bool) -> uvicorn.Server:
    """Return a server whose `run(sockets=[...])` serves until a signal comes.

    On SIGINT or SIGTERM it accepts no more, and lets the answers that have begun end.

    Args:
        app: The application.
        drain_seconds: How long they may take; then they are cancelled.
        access_log: Write a line per request.
    """
    config = uvicorn.Config(
        app,
        access_log=access_log,
        lifespan="off",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
    )
    return uvicorn.Server(config)
