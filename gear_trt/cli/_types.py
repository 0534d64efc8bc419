"""Values of options that are more than a text or a number."""

from __future__ import annotations

import typer


def parse_bytes(text: str) -> int:
    """Return the bytes that a text like `512MiB` names.

    Raises:
        typer.BadParameter: It names none.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"{text} is no size; write 512MiB or 2GiB") from None
