"""What the kernels say of the data of a step, as an error that the user can act on."""

from __future__ import annotations

from gear_trt.errors import ErrorCode, GearError

OVERFLOW_HINT = "check the model's weights; `--preset exact` keeps the cache in FP32"


def activation_fault(text: str) -> GearError | None:
    """Return the error of a key or value that no cache can hold; None for anything else.

    Args:
        text: What a kernel library said.
    """
    if "is not finite" in text or "beyond FP16" in text:
        return GearError(ErrorCode.NON_FINITE_ACTIVATION, text, hint=OVERFLOW_HINT)
    return None
