"""Files that go beside an engine as they are: tokenizer, generation config."""

from __future__ import annotations

import shutil
from pathlib import Path

from gear_trt.errors import ErrorCode, GearError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
GENERATION_CONFIG = "generation_config.json"


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what there is of a tokenizer, where `tokenizer.json` is part of it."""
    if (source / TOKENIZER_FILE).is_file():
        _copy(source, target, TOKENIZER_FILES)


def copy_generation_config(source: Path, target: Path) -> None:
    """Copy `generation_config.json` if there is one."""
    _copy(source, target, (GENERATION_CONFIG,))


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder that was named as a tokenizer's and holds none.

    Raises:
        GearError: `MISSING_FILE`.
    """
    if not (folder / TOKENIZER_FILE).is_file():
        raise GearError(
            ErrorCode.MISSING_FILE,
            f"{folder} has no {TOKENIZER_FILE}",
            hint="name the folder that holds the model's tokenizer",
        )


def _copy(source: Path, target: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
