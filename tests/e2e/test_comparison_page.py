"""The page of runs side by side in a real browser. Screenshots are in data/screenshots."""

import pytest

from tests.e2e.browser import SCREENSHOTS, open_page
from textgen.comparison.compare import compare_runs
from textgen.comparison.page import write_page
from textgen.publishing.runs import find_run
from textgen.storage import Storage

WIDTHS = {"wide": 1100, "phone": 390}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS)
def test_the_page_of_runs_side_by_side_reads_in_both_themes_and_on_a_phone(rivals, tmp_path, theme, size):
    storage, path = Storage(rivals[0].config.storage), tmp_path / "page.html"
    write_page(compare_runs([find_run(name, storage, "textgen") for name in ("v1", "v2", "v3")], storage), path)
    asked, failures = [], []
    with open_page() as page:
        page.context.set_offline(True)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda line: failures.append(line.text))
        page.set_viewport_size({"width": WIDTHS[size], "height": 900})
        page.emulate_media(color_scheme=theme)
        page.goto(path.as_uri())
        assert (asked, failures) == ([path.as_uri()], [])
        assert page.locator("body").evaluate("body => body.ownerDocument.documentElement.scrollWidth") == WIDTHS[size]
        assert page.locator(".curve").count() == 3 * 4  # of train and validation, over tokens and over seconds
        page.locator("summary").click()
        assert page.get_by_text("training.batch_size").is_visible()
        page.locator("summary").click()
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"comparison-{theme}-{size}.png", full_page=True)
