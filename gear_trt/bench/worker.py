"""A process that holds one decoder: its peak memory is that decoder's, and it waits its turn."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np

from gear_trt.bench.decoders import DecoderSpec, IdArray
from gear_trt.bench.machine import peak_memory_bytes
from gear_trt.errors import ErrorCode, GearError
from gear_trt.runtime.backend import PREFILL_SLICE

EMPTY_CAPACITY = 64
FIRST_ID, LAST_ID = 10, 250
"""Range of the token ids; which ones does not matter, so long as every vocabulary has them."""


@dataclass(frozen=True)
class Usage:
    """What a decoder takes.

    Attributes:
        cache_bytes: What the cache of the tokens held takes.
        peak_memory_bytes: Largest resident size of the process so far.
        cpu_seconds: CPU time of the process so far.
    """

    cache_bytes: int
    peak_memory_bytes: int
    cpu_seconds: float


class DecodingSession:
    """What a worker does: a long sequence, and a short one for the cost of an empty context.

    Args:
        spec: Which decoder.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        self._long = spec.open()
        self._short = self._long.sibling(EMPTY_CAPACITY)
        self._ids = np.random.default_rng(0)

    def fill(self, tokens: int) -> float:
        """Forget everything, prefill `tokens` tokens, and return the seconds that took."""
        self._long.reset()
        started = time.perf_counter()
        for first in range(0, tokens, PREFILL_SLICE):
            self._long.step(self._draw(min(PREFILL_SLICE, tokens - first)))
        return time.perf_counter() - started

    def decode(self, tokens: int) -> list[float]:
        """Decode `tokens` tokens on the long sequence; return the seconds of each."""
        return [_timed(self._long.step, self._draw(1)) for _ in range(tokens)]

    def decode_empty(self, tokens: int) -> list[float]:
        """Decode `tokens` tokens on a sequence of one; return the seconds of each."""
        self._short.reset()
        self._short.step(self._draw(1))
        return [_timed(self._short.step, self._draw(1)) for _ in range(tokens)]

    def usage(self) -> Usage:
        """Return what the long sequence and the process take."""
        return Usage(self._long.cache_bytes, peak_memory_bytes(), time.process_time())

    def _draw(self, count: int) -> IdArray:
        return self._ids.integers(FIRST_ID, LAST_ID, count)


class Worker:
    """A `DecodingSession` in a process of its own.

    Args:
        spec: Which decoder.

    Raises:
        GearError: What opening the decoder raised.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        self._name = spec.name
        context = multiprocessing.get_context("spawn")  # a fork would inherit memory and threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return the worker itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def fill(self, tokens: int) -> float:
        """See `DecodingSession.fill`."""
        return float(self._ask("fill", tokens))

    def decode(self, tokens: int) -> list[float]:
        """See `DecodingSession.decode`."""
        return list(self._ask("decode", tokens))

    def decode_empty(self, tokens: int) -> list[float]:
        """See `DecodingSession.decode_empty`."""
        return list(self._ask("decode_empty", tokens))

    def usage(self) -> Usage:
        """See `DecodingSession.usage`."""
        usage: Usage = self._ask("usage")
        return usage

    def _ask(self, method: str, *arguments: int) -> Any:  # noqa: ANN401 - each method has its own
        return self._receive((method, arguments))

    def _receive(self, question: object = None) -> Any:  # noqa: ANN401 - as above
        try:
            if question is not None:
                self._connection.send(question)
            failure, answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            if self._process.exitcode != -signal.SIGKILL:
                raise RuntimeError(f"the process of {self._name} failed, see above") from None
            raise GearError(
                ErrorCode.BAD_REQUEST,
                f"the process of {self._name} was killed, as the system does when memory runs out",
                hint="choose a smaller context",
            ) from None
        if failure is not None:
            code, message, hint, detail = failure
            raise GearError(ErrorCode[code], message, hint=hint, detail=detail)
        return answer


def _serve(connection: Connection, spec: DecoderSpec) -> None:
    """Answer until the other end is closed; the first answer says that the decoder is open."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    try:
        session = DecodingSession(spec)
    except GearError as error:
        connection.send(((error.code.name, error.message, error.hint, error.detail), None))
        return
    connection.send((None, None))
    with suppress(EOFError):
        while True:
            method, arguments = connection.recv()
            connection.send((None, getattr(session, method)(*arguments)))


def _timed(step: Callable[[IdArray], object], tokens: IdArray) -> float:
    started = time.perf_counter()
    step(tokens)
    return time.perf_counter() - started
