"""The Prefect UI in a real browser: a run from the form, watched to its end. Screenshots are in data/screenshots."""

import shutil
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.e2e.runs import TINY
from tests.e2e.services import PATIENCE_SECONDS, ROOT, until

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = ROOT / "data" / "screenshots"
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
PATIENCE = PATIENCE_SECONDS * 1000  # milliseconds


@pytest.fixture
def page() -> Iterator[Page]:
    """Return a page of a browser without a window."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1400, "height": 2000})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield page
        browser.close()


def submit(page: Page) -> int:
    """Submit the form and return the server's answer; where its database was busy, once more."""
    button = page.get_by_role("button", name="Submit")

    def answered() -> int:
        with page.expect_response("**/create_flow_run") as answer:
            button.press("Enter")  # a message may lie over the button
        return 0 if answer.value.status == httpx.codes.SERVICE_UNAVAILABLE else answer.value.status

    return until(answered, "the server takes the form")


def test_a_run_from_the_form_is_watched_to_its_model_card(stack, corpus, page, tmp_path):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.goto(f"{stack.url}/deployments")
    page.get_by_role("link", name="on-demand", exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    numbers = page.get_by_role("spinbutton")
    expect(numbers).to_have_count(4)
    steps, learning_rate, _, seed = numbers.all()
    learning_rate.fill("0.003")
    seed.fill("7")
    overrides, texts = (corpus, f"storage.root={tmp_path / 'data'}", *TINY), page.get_by_role("textbox")
    before = texts.count()
    for number, override in enumerate(overrides, start=1):
        page.get_by_role("button", name="Add item").click()
        expect(texts).to_have_count(before + number)
        texts.last.fill(override)
    steps.fill("0")
    page.screenshot(path=SCREENSHOTS / "1-form.png", full_page=True)
    assert submit(page) == httpx.codes.CONFLICT
    expect(page.get_by_text("0 is less than the minimum of 1").first).to_be_visible()
    page.screenshot(path=SCREENSHOTS / "2-refused.png", full_page=True)

    steps.fill("200")
    assert submit(page) == httpx.codes.CREATED
    page.wait_for_url("**/deployments/deployment/*?tab=Runs")
    page.locator("a[href*='/runs/flow-run/']").first.click()
    page.wait_for_url("**/runs/flow-run/*")
    run_id = page.url.split("/")[-1].split("?")[0]
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    page.screenshot(path=SCREENSHOTS / "3-completed.png", full_page=True)
    parameters = stack.run(run_id)["parameters"]
    assert parameters["training"] == {"steps": 200, "learning_rate": 0.003, "seed": 7}

    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("tiny-model-card").first.click()
    curve = page.get_by_alt_text("Loss while training").first
    expect(curve).to_be_visible()
    assert curve.evaluate("image => image.complete && image.naturalWidth") > 400
    page.screenshot(path=SCREENSHOTS / "4-model-card.png", full_page=True)
