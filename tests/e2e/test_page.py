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
QUESTIONS = ("Why is the sky blue?", "And why is it red in the evening?", "Write a long story.")
WIDTH, HEIGHT = 1280, 800
SECONDS_OF_THE_LAST = 15


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
        for count, question in enumerate(QUESTIONS):
            page.get_by_label("Message").fill(question)
            page.keyboard.press("Enter")
            if question != QUESTIONS[-1]:
                page.locator(".assistant .note").nth(count).wait_for()
        page.wait_for_timeout(1000 * SECONDS_OF_THE_LAST)
        page.screenshot(path=folder / "server.png")
        page.emulate_media(color_scheme="dark")
        page.screenshot(path=folder / "server-dark.png")
        ratio = page.locator("#ratio").inner_text()
        page.get_by_role("button", name="Stop").click()
        assert float(ratio.removesuffix("×")) > 2
