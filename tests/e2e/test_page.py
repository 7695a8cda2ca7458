"""The server's page in a real browser."""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.e2e.browser import CHROMIUM, OPTIONS, PATIENCE
from tests.inference.serving import ENDLESS, QUICK, Running, Shelf, another, serve, wait_until
from textgen.errors import Damaged
from textgen.inference.worker import Version

POLL = 3000  # milliseconds between two looks of the page at the version
PROMPT = "the old 塔\n  river "


class MeasuredShelf(Shelf):
    """A shelf whose versions have a test perplexity."""

    def load(self, version: str) -> Version:
        return super().load(version)._replace(about={"token_perplexity": 23.1193, "bits_per_byte": None})


@pytest.fixture(scope="module")
def running(loaded) -> Iterator[Running]:
    with serve(MeasuredShelf(v1=loaded)) as running:
        running.never_end()
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not on this machine: apt-get install chromium")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """Yield a page that may ask its own server alone, and must not fail."""
    page = browser.new_page(has_touch=True)
    page.set_default_timeout(PATIENCE)
    failures: list[str] = []
    asked: set[str] = set()
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda line: failures.append(line.text) if "Content Security Policy" in line.text else None)
    page.on("request", lambda request: asked.add(request.url))
    yield page
    origin = re.match(r"https?://[^/]+", page.url)[0]
    page.close()
    assert failures == []
    assert asked <= {origin + path for path in ("/", "/ready", "/v1/models", "/v1/completions")}


def write(page: Page, prompt: str = PROMPT, **settings: str) -> None:
    """Have a text written."""
    page.get_by_label("Prompt").fill(prompt)
    for name, value in settings.items():
        page.locator(f"[name={name}]").evaluate("(field, value) => { field.value = value; }", value)
    page.get_by_label("Prompt").press("Control+Enter")


def written(page: Page) -> str:
    """Return the text of the tokens."""
    return "".join(page.locator(".token").evaluate_all("spans => spans.map(span => span.textContent)"))


def complete(running: Running, **fields: object) -> dict[str, Any]:
    """Return the API's own choice."""
    asked = {"prompt": PROMPT, "temperature": 0.8, "logprobs": 5, **fields}
    return httpx.post(f"{running.url}/v1/completions", json=asked, timeout=60).json()["choices"][0]


def visible(name: str) -> str:
    """Return how the page spells a token."""
    if name.startswith("bytes:"):
        return "bytes" + name.removeprefix("bytes:").replace("\\x", " ").upper()
    signs = {" ": "␣", "\n": "↵", "\t": "⇥"}
    return "".join(
        signs.get(sign) or (f"U+{ord(sign):X}" if unicodedata.category(sign).startswith("C") else sign) for sign in name
    )


# A stop string that ends inside a token, and two of which the text has but the beginning, in the middle of a token
STOPS = [("", []), ("mb", ["mb"]), ("lambs\n\nm}\\n", ["lambs", "m}\n"])]


@pytest.mark.parametrize(("typed", "stop"), STOPS)
def test_the_text_is_the_apis_for_the_same_settings(typed, stop, page, running):
    page.goto(running.url)
    page.get_by_text("More settings").click()
    page.get_by_label("Stop at").fill(typed)
    expect(page.get_by_label("API key")).to_be_hidden()
    with page.expect_request("**/completions") as asked:
        write(page, seed="5", max_tokens="60", top_k="40", min_p="0.001", repetition_penalty="1.1", top_p="0.99")
    assert asked.value.post_data_json["stop"] == stop
    expect(page.locator("#state")).to_have_text(re.compile("Max tokens reached|The text ended"))
    settings = {"seed": 5, "max_tokens": 60, "top_k": 40, "min_p": 0.001, "repetition_penalty": 1.1, "top_p": 0.99}
    choice = complete(running, **settings, stop=stop)
    assert written(page) == choice["text"]
    assert page.locator(".prompt").evaluate("span => span.textContent") == PROMPT
    assert page.locator(".token").count() == len(choice["logprobs"]["tokens"])
    expect(page.locator("#figures")).to_have_text(
        re.compile(rf"^{len(choice['logprobs']['tokens'])} tokens · \d[\d.]* tokens/s · tiny@v1$")
    )


def test_the_tokens_of_characters_in_pieces_can_be_reached(page, running):
    page.goto(running.url)
    write(page, seed="1", max_tokens="300", temperature="1.5")
    expect(page.locator("#state")).to_have_text("Max tokens reached.")
    choice = complete(running, seed=1, max_tokens=300, temperature=1.5)
    assert written(page) == choice["text"]
    pieces = [place for place, name in enumerate(choice["logprobs"]["tokens"]) if name.startswith("bytes:")]
    assert pieces, "the model wrote no character in pieces: take another seed"
    spans = page.locator(".token")
    empty = next(place for place in pieces if spans.nth(place).evaluate("span => span.textContent") == "")
    spans.nth(empty).hover()
    expect(page.get_by_role("tooltip")).to_contain_text(f"“{visible(choice['logprobs']['tokens'][empty])}” had")


def test_stop_and_escape_free_the_row(page, running):
    page.goto(running.url)
    for stop in (lambda: page.get_by_role("button", name="Stop").press("Enter"), lambda: page.keyboard.press("Escape")):
        write(page, max_tokens=str(ENDLESS))
        expect(page.locator(".token").nth(5)).to_be_attached()
        assert running.state.worker.running == 1
        stop()
        expect(page.locator("#state")).to_have_text("Stopped.")
        wait_until(lambda: running.state.worker.running == 0)
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    write(page, max_tokens=str(ENDLESS))
    expect(page.locator(".token").nth(5)).to_be_attached()
    write(page, seed="5", max_tokens="9")  # begins anew, in place of the one before
    expect(page.locator("#state")).to_have_text("Max tokens reached.")
    assert written(page) == complete(running, seed=5, max_tokens=9)["text"]


def test_the_alternatives_are_shown_by_keyboard_pointer_and_finger(page, running):
    page.goto(running.url)
    write(page, seed="5", max_tokens="60")
    expect(page.locator("#state")).to_have_text("Max tokens reached.")
    log_probs = complete(running, seed=5, max_tokens=60)["logprobs"]
    popover, spans = page.get_by_role("tooltip"), page.locator(".token")

    def check(place: int) -> None:
        expect(popover).to_be_visible()
        shown = popover.get_by_role("rowheader").all_text_contents()
        expected = sorted(log_probs["top_logprobs"][place].items(), key=lambda one: -one[1])
        others = [name for name in shown if name != "all others"]
        assert others == [visible(name) for name, _ in expected]
        for cell in popover.get_by_role("cell").all_text_contents():
            assert re.fullmatch(r"(\d[\d.]*|<0\.01)%|", cell)

    page.get_by_role("button", name="Write").focus()
    page.keyboard.press("Tab")  # Stop cannot be pressed now, so that the first token is next
    check(0)
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 59), ("Home", 0)):
        page.keyboard.press(key)
        expect(spans.nth(place)).to_be_focused()
        check(place)
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert below > spans.first.bounding_box()["y"]
    page.keyboard.press("ArrowUp")
    expect(spans.first).to_be_focused()
    page.keyboard.press("Escape")
    expect(popover).to_be_hidden()
    page.keyboard.press("Shift+Tab")
    spans.nth(7).hover()
    check(7)
    popover.hover()  # one can go to it
    page.wait_for_timeout(200)
    check(7)
    page.get_by_label("Prompt").hover()
    expect(popover).to_be_hidden()
    spans.nth(3).tap()
    check(3)
    page.get_by_label("Prompt").tap()
    expect(popover).to_be_hidden()


def test_a_swap_and_a_refusal_are_told(page, loaded):
    shelf = MeasuredShelf(v1=loaded, v2=another(loaded, 2), v3=Damaged("v3 is <b>damaged</b>"))
    with serve(shelf) as running:
        page.clock.install()
        page.goto(running.url)
        expect(page.locator("#version")).to_have_text("tiny@v1 · test perplexity 23.1")
        shelf.champion = "v2"
        running.wait_until_served("v2")
        page.clock.fast_forward(POLL)
        notice = page.locator("#notice")
        expect(notice).to_contain_text("tiny@v2 took over from tiny@v1.")
        expect(page.locator("#version")).to_contain_text("tiny@v2")
        shelf.champion = "v3"
        wait_until(lambda: running.state.follower.refused is not None)
        page.clock.fast_forward(POLL)
        expect(notice).to_contain_text("A new version was refused: v3 is <b>damaged</b>. tiny@v2 stays.")
        page.get_by_role("button", name="Dismiss").click()
        expect(notice).to_be_empty()
        write(page, max_tokens="3")
        expect(page.locator("#figures")).to_contain_text("tiny@v2")


def test_a_key_is_asked_for_where_one_is_needed(page, running, loaded):
    with serve(MeasuredShelf(v1=loaded), replace(QUICK, key="secret")) as locked:
        page.clock.install()
        page.goto(locked.url)
        field = page.get_by_label("API key")
        expect(page.locator("#version")).to_have_text("tiny@v1")
        write(page, max_tokens="9", seed="5")
        error = page.locator("#error")
        expect(error).to_have_text("This server needs an API key.")
        expect(field).to_be_focused()
        field.fill("wrong")
        field.press("Enter")
        expect(error).to_have_text("The API key is wrong.")
        field.fill("secret")
        field.press("Enter")
        expect(page.locator("#state")).to_have_text("Max tokens reached.")
        expect(error).to_be_empty()
        assert written(page) == complete(running, seed=5, max_tokens=9)["text"]
        page.clock.fast_forward(POLL)
        expect(page.locator("#version")).to_contain_text("perplexity")


def test_before_the_first_promotion_the_reason_is_shown(page, loaded):
    shelf = MeasuredShelf()
    with serve(shelf) as running:
        wait_until(lambda: "there is no champion" in (running.state.reason or ""))
        page.clock.install()
        page.goto(running.url)
        expect(page.locator("#version")).to_have_text("Not ready: tiny@champion: there is no champion")
        write(page)
        expect(page.get_by_role("alert")).to_contain_text("there is no champion")
        shelf.versions["tiny@v1"], shelf.champion = loaded, "v1"
        running.wait_until_served("v1")
        page.clock.fast_forward(POLL)
        expect(page.locator("#notice")).to_contain_text("tiny@v1 is in use now.")
        write(page, max_tokens="3")
        expect(page.locator(".token")).to_have_count(3)
        expect(page.locator("#error")).to_be_empty()


def test_what_goes_wrong_is_said_in_words(page, running):
    page.goto(running.url)
    error = page.get_by_role("alert")
    write(page, "a " * 5000)
    expect(error).to_contain_text("are over the 32 of the context")
    write(page, top_p="7")  # the browser refuses it, where it can be seen
    expect(page.locator("[name=top_p]")).to_be_visible()
    expect(page.locator("[name=top_p]")).to_be_focused()
    for answer, message in [
        ({"status": 429, "json": {"error": {"message": "9 texts wait"}}}, "The server is busy: 9 texts wait."),
        ({"status": 502, "body": "<h1>Bad gateway</h1>"}, "The server answered with status 502."),
        ({"status": 200, "body": 'data: {"error": {"message": "it broke"}}\n\n'}, "It broke."),
        ({"status": 200, "body": ""}, "The connection ended before the text did."),
        (None, "The server cannot be reached."),
    ]:
        page.route("**/completions", partial(fulfil, answer))
        write(page, top_p="1")
        expect(error).to_have_text(message)
        page.unroute("**/completions")


def fulfil(answer: dict[str, Any] | None, route: Route) -> None:
    """Answer in the server's place, or not at all."""
    if answer is None:
        route.abort()
    else:
        route.fulfill(**answer)


def test_a_text_is_never_taken_for_html(page, running):
    attack = "<img src=x onerror=\"document.title = 'taken'\"><script>document.title = 'taken'</script>"
    event = {
        "model": "<b>tiny</b>",
        "choices": [{
            "text": "😀" + attack, "finish_reason": "stop",
            "logprobs": {
                "tokens": ["😀", attack], "token_logprobs": [-1.0, -1.0],
                "top_logprobs": [{"😀": -1.0}, {attack: -1.0, "<i>": -2.0}],
                "text_offset": [0, 1],  # in whole characters
            },
        }],
    }  # fmt: skip
    page.route("**/completions", lambda route: route.fulfill(body=f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n"))
    page.goto(running.url)
    write(page, attack)
    expect(page.locator("#state")).to_have_text("The text ended.")
    page.locator(".token").last.hover()
    expect(page.get_by_role("tooltip")).to_contain_text("onerror")
    assert page.locator(".token").last.text_content() == page.locator(".prompt").text_content() == attack
    assert page.locator("img, b, i, main script").count() == 0
    assert page.title() == "textgen"


def test_nothing_is_wider_than_a_phone(page, running):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(running.url)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 360
    page.get_by_text("More settings").click()
    write(page, "unbroken" * 4 + "_" * 200, max_tokens="3")
    expect(page.get_by_role("alert")).to_be_in_viewport()
    assert page.evaluate(width) == 360
    write(page, "unbroken_" * 2, max_tokens="80", seed="5")
    expect(page.locator("#state")).to_have_text("Max tokens reached.")
    expect(page.locator("#state")).to_be_in_viewport()
    assert page.evaluate(width) == 360
    for place in range(0, 80, 8):
        page.locator(".token").nth(place).tap()
        box = page.get_by_role("tooltip").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert page.evaluate(width) == 360
    expect(page.get_by_role("button", name="Stop")).to_be_in_viewport()


def test_a_text_is_followed_until_the_reader_scrolls(page, running):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(running.url)
    write(page, max_tokens=str(ENDLESS), seed="5")
    tokens = page.locator(".token")

    def hidden() -> float:
        """Return how much of the page is below what is seen."""
        return page.evaluate("document.documentElement.scrollHeight - innerHeight - scrollY")

    def scrolled_up() -> bool:
        """Turn the wheel, again if a token came before the page had moved."""
        page.mouse.wheel(0, -500)
        return hidden() > 300

    wait_until(lambda: tokens.count() > 40)
    page.evaluate("scrollTo(0, 0)")  # as when the browser shows the field that has the focus
    wait_until(lambda: tokens.count() > 400 and hidden() < 40)
    page.mouse.move(180, 300)
    wait_until(scrolled_up)
    before = tokens.count()
    wait_until(lambda: tokens.count() > before + 40)
    assert hidden() > 300
    page.get_by_role("button", name="Stop").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tint_can_be_read_and_told_apart_without_hue(scheme, page, running):
    page.emulate_media(color_scheme=scheme)
    page.goto(running.url)
    contrasts = page.evaluate("""() => {
        const numbers = color => color.match(/[\\d.]+/g).slice(0, 3).map(value => value / 255);
        const light = color => numbers(color)
            .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
            .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0.05);
        const page = getComputedStyle(document.body).backgroundColor;
        return [...document.querySelectorAll("#legend span")].map(span => {
            const { color, backgroundColor } = getComputedStyle(span);
            const back = light(backgroundColor === "rgba(0, 0, 0, 0)" ? page : backgroundColor);
            return Math.max(light(color), back) / Math.min(light(color), back);
        });
    }""")
    assert len(contrasts) == 5 and contrasts[-1] >= 4.5
    assert all(one > 1.1 * other for one, other in pairwise(contrasts))
