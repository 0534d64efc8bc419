"""The packages of the extra `[serve]`."""

from __future__ import annotations

from importlib.util import find_spec

from gear_trt.errors import ErrorCode, GearError

_PACKAGES = ("fastapi", "prometheus_client", "uvicorn")


def require() -> None:
    """Refuse to go on without the packages of the server.

    Raises:
        GearError: `MISSING_DEPENDENCY`.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise GearError(
            ErrorCode.MISSING_DEPENDENCY,
            f"the server needs {', '.join(missing)}",
            hint="pip install 'gear-trt[serve]'",
        )
