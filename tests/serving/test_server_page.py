"""The built-in page in a browser: an answer comes, the plot is drawn, a key is asked for."""

import re
from dataclasses import replace

import pytest

from gear_trt.serving import Scheduler
from gear_trt.serving.app import PAGE
from tests.serving.browser import browser_page
from tests.serving.scripted import ScriptedScheduler
from tests.serving.servers import LIMITS, serving


@pytest.fixture(scope="module")
def browser():
    with browser_page() as page:
        yield page


@pytest.fixture
def page(browser):
    """The page; it may only ask the server for anything, and nothing may fail in it."""
    faults, hosts = [], set()
    browser.on("pageerror", lambda error: faults.append(str(error)))
    browser.on("request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]))
    yield browser
    browser.goto("about:blank")
    assert faults == []
    assert hosts == {"127.0.0.1"}


def ask(page, question):
    page.get_by_label("Message").fill(question)
    page.keyboard.press("Enter")


def test_chat(model, page):
    with (
        Scheduler(model, max_cache_bytes=120_000, max_batch=1) as scheduler,
        serving(scheduler, limits=replace(LIMITS, answers=2)) as url,
    ):
        page.goto(url)
        page.get_by_text(f"toy · {scheduler.max_tokens} tokens of context").wait_for()
        ask(page, "<b>Hi</b>")
        note = page.locator(".assistant .note")
        note.wait_for()
        assert re.match(r"\d+ tokens · .* tokens/s · first after", note.inner_text())
        assert page.locator(".user .text").inner_text() == "<b>Hi</b>"
        assert page.locator(".assistant .text").inner_text()
        assert page.get_by_role("button", name="Send").is_visible()
        page.get_by_role("button", name="New chat").click()
        assert page.locator(".message").count() == 0
        page.goto("about:blank")


def test_plot_and_counts(folder, page):
    with serving(ScriptedScheduler(folder)) as url:
        page.goto(url)
        page.get_by_label("The cache holds 1.0 MB, FP16 would hold 3.5 MB").wait_for()
        page.get_by_text("3.50×").wait_for()
        assert page.locator("#hits").inner_text() == "64 of 256"
        page.locator("#plot .line.held[d*=L]").wait_for(state="attached")
        page.goto("about:blank")


def test_stop_and_failure(folder, page):
    scheduler = ScriptedScheduler(folder, answers_end=False)
    with serving(scheduler) as url:
        page.goto(url)
        page.get_by_text("toy ·").wait_for()
        ask(page, "Hi")
        page.get_by_text("Hel", exact=True).wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("stopped").wait_for()
        scheduler.reset()
        scheduler.failure = ZeroDivisionError()
        ask(page, "And now?")
        page.locator(".note.fault").wait_for()
        assert "its log has the cause" in page.locator(".note.fault").inner_text()
        page.goto("about:blank")


def test_key(folder, page):
    with serving(ScriptedScheduler(folder), api_key="s3cret") as url:
        page.goto(url)
        page.get_by_label("This server asks for an API key").fill("s3cret")
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("toy · 400 tokens of context").wait_for()
        page.goto("about:blank")


def test_nothing_is_loaded_from_elsewhere():
    for file in PAGE.iterdir():
        addresses = set(re.findall(r"https?://[^\"'\s]+", file.read_text()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file
