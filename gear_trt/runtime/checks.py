"""Checks of numbers that callers pass."""

from __future__ import annotations

from gear_trt.errors import ErrorCode, GearError


def in_range(name: str, value: int, low: int, high: int | None = None) -> int:
    """Return a value that lies in a range.

    Raises:
        GearError: `BAD_REQUEST`, naming the value and the range.
    """
    if value < low or (high is not None and value > high):
        raise GearError(
            ErrorCode.BAD_REQUEST,
            f"{name} is {value}",
            hint=f"it must be {low} or more{'' if high is None else f', and {high} or less'}",
        )
    return value
