"""The screenshots of the page in docs/: the real model answers, the page is photographed."""

import os
from pathlib import Path

import pytest

from gear_trt.serving import Scheduler
from gear_trt.serving.limits import Limits
from tests.serving.browser import browser_page
from tests.serving.servers import serving

pytestmark = pytest.mark.slow

FOLDER_VARIABLE = "GEAR_SCREENSHOTS"
QUESTIONS = (
    "Why is the sky blue?",
    "Why is the evening sky red?",
    "Tell me the whole history of lighthouses, century by century.",
)
WIDTH, HEIGHT = 1280, 800
RATIO = 2.4
"""Compression at which the picture is taken: it grows with the conversation."""


@pytest.mark.skipif(
    FOLDER_VARIABLE not in os.environ, reason=f"{FOLDER_VARIABLE} names no folder for pictures"
)
def test_screenshots(export):
    folder = Path(os.environ[FOLDER_VARIABLE])
    limits = Limits(body_bytes=1 << 20, prompt_tokens=None, answers=4)
    with (
        Scheduler(export("k4v4"), max_cache_bytes=256 << 20, max_batch=4) as scheduler,
        serving(scheduler, limits=limits, name="SmolLM2-135M-Instruct") as url,
        browser_page(width=WIDTH, height=HEIGHT) as page,
    ):
        page.goto(url)
        assert any(is_large_while_answering(page, question) for question in QUESTIONS * 3)
        page.screenshot(path=folder / "server.png")
        page.emulate_media(color_scheme="dark")
        page.screenshot(path=folder / "server-dark.png")
        page.get_by_role("button", name="Stop").click()


def is_large_while_answering(page, question):
    """Ask; returns True as soon as the ratio is reached, False when the answer ends before."""
    page.get_by_label("Message").fill(question)
    page.keyboard.press("Enter")
    page.locator(".busy").wait_for()
    while page.locator(".busy").count():
        page.wait_for_timeout(500)
        shown = page.locator("#ratio").inner_text().removesuffix("×")
        if shown != "–" and float(shown) > RATIO and page.locator(".busy .text").inner_text():
            return True
    return False
