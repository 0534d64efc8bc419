"""Pages of `docs/` that are drawn from the spec."""

from __future__ import annotations


def layout_page() -> str:
    return ""


def layout_picture() -> str:
    return ""


def ops_page() -> str:
    return ""
