"""What the documents point at is there."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
HOMES = (REPOSITORY, REPOSITORY / "gear_trt", REPOSITORY / "plugins")
"""Folders that paths in the text may start from."""
MADE_BY_GPU_CHECK = "benchmarks/results/gpu.jsonl"

PAGES = sorted(  # workers must agree on the order
    [
        *REPOSITORY.glob("*.md"),
        *(page for folder in ("docs", "samples") for page in (REPOSITORY / folder).rglob("*.md")),
    ]
)


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for path, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"
    for path in re.findall(r"`([\w./-]+/[\w./-]+\.(?:py|md|h|cu|cpp|jsonl|json|toml))`", text):
        homes = (*HOMES, page.parent)
        assert path == MADE_BY_GPU_CHECK or any((home / path).exists() for home in homes), path
