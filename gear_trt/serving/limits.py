"""How much is asked of the server at once, and when to come back."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from gear_trt.serving.failures import ApiError

_WEIGHT = 0.1
"""Of the newest answer in the running mean of times."""


@dataclass(frozen=True)
class Limits:
    """What one request, and all together, may ask.

    Attributes:
        body_bytes: Of one request.
        prompt_tokens: Of one prompt; None means what the scheduler takes.
        answers: Being generated or waiting, all requests together.
        seconds: From a request to the end of its answers; None for no limit.
    """

    body_bytes: int
    prompt_tokens: int | None
    answers: int
    seconds: float | None = None


class Seats:
    """Answers that may be in the house at once; one more is sent away with a time to return.

    Args:
        limit: How many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._mean_seconds = 0.0

    def take(self, count: int) -> Seat:
        """Take seats for one request.

        Raises:
            ApiError: 400 where there will never be so many, 429 where there are not now.
        """
        if count > self._limit:
            raise ApiError(
                400,
                f"the request asks for {count} answers, the server gives {self._limit} at once",
                param="n",
            )
        if self._taken + count > self._limit:
            raise ApiError(
                429,
                "the server is full: try again later",
                code="server_full",
                headers={"Retry-After": str(self._seconds_until_free(count))},
            )
        self._taken += count
        return Seat(self, count)

    def _seconds_until_free(self, count: int) -> int:
        """Answers end at the rate limit / mean time, so this is when `count` more have ended."""
        return max(1, math.ceil(self._mean_seconds * count / self._limit))

    def _give_back(self, count: int, seconds: float) -> None:
        self._taken -= count
        self._mean_seconds += _WEIGHT * (seconds - self._mean_seconds)


class Seat:
    """The seats of one request; made by `Seats.take`."""

    def __init__(self, seats: Seats, count: int) -> None:
        self._seats = seats
        self._count = count
        self._since = time.monotonic()

    def give_back(self) -> None:
        """Free the seats; once is enough."""
        if self._count:
            self._seats._give_back(self._count, time.monotonic() - self._since)
        self._count = 0
