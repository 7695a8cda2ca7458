"""A real browser for the Prefect UI. Screenshots are in data/screenshots."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from playwright.sync_api import Page, Response, expect, sync_playwright

from tests.e2e.services import ROOT, until
from tests.waiting import PATIENCE_SECONDS

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = ROOT / "data" / "screenshots"
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
PATIENCE = PATIENCE_SECONDS * 1000  # milliseconds


@contextmanager
def open_page() -> Iterator[Page]:
    """Yield a page of a browser without a window, or skip the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1400, "height": 2000}, reduced_motion="reduce")
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield page
        browser.close()


def submit(page: Page) -> Response:
    """Submit the form and return the server's answer; where its database was busy, once more."""
    button = page.get_by_role("button", name="Submit")

    def answered() -> Response | None:
        with page.expect_response("**/create_flow_run") as answer:
            button.press("Enter")  # a message may lie over the button
        return None if answer.value.status == httpx.codes.SERVICE_UNAVAILABLE else answer.value

    return until(answered, "the server takes the form")
