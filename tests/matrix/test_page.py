"""The page of `climafuse demo` in a real browser: asked by mouse, by finger and by keyboard.

`scripts/matrix page` finds or installs a Chromium. The model is tiny and knows nothing, so it is told what to say: the
mean temperature that the file holds, or nine degrees more. Everything else is as users have it, server included.
"""

from __future__ import annotations

import re
import socket

import numpy as np
import pytest

from climafuse.model.inference import Reader
from climafuse.report.inquiry import Inquiry
from tests.matrix.browsers import HARD_TO_READ, SCREENS, browser, note_complaints  # noqa: F401 (a fixture)
from tests.report.serving import serving
from tests.report.test_inquiry import run  # noqa: F401 (a fixture)

pytestmark = [
    pytest.mark.slow,
    # Gradio, about pandas.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

WIDTHS = SCREENS | {"phone": SCREENS["phone"] | {"viewport": {"width": 390, "height": 844}}}
QUESTION = "What is the mean temperature?"
PATIENCE = 60_000  # milliseconds, for a machine with other work


@pytest.fixture(scope="module")
def served(run):  # noqa: F811
    inquiry = Inquiry.open(run)
    with serving(inquiry) as port:
        yield port, inquiry.fields.times()


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What the model says: the mean temperature of what it is shown, by hand, and what is added to it."""
    off = {"by": 0}

    def say(self, windows, prompts, **_):
        answers = []
        for window in windows:
            weights = np.cos(np.deg2rad(window.latitude))[:, None] * np.ones(len(window.longitude))
            mean = np.average(window.field("t2m")[-1], weights=weights) - 273.15
            answers.append(f"Mean temperature {round(mean) + off['by']} °C.")
        return answers

    monkeypatch.setattr(Reader, "answer", say)
    return off


@pytest.fixture
def opened(browser, served):  # noqa: F811
    """Opens the page, with what it complained about and asked of others."""
    contexts = []

    def open_(screen):
        context = browser.new_context(**WIDTHS[screen])
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.elsewhere = []
        note_complaints(page)
        own = f"http://127.0.0.1:{served[0]}/"

        def answer(route):
            if route.request.url.startswith((own, "data:", "blob:")):
                route.continue_()
            else:
                page.elsewhere.append(route.request.url)
                route.abort()

        page.route("**/*", answer)
        page.goto(own, wait_until="load")
        page.wait_for_selector("img.locator")
        return page

    yield open_
    for context in contexts:
        context.close()


def _fits(page):
    """As wide as the screen, and quiet."""
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.evaluate("innerWidth") == page.viewport_size["width"]  # a phone does not zoom out
    # Gradio's page hangs up on the stream of events when all have come.
    assert [complaint for complaint in page.complaints if "/gradio_api/queue/data?" not in complaint] == []
    assert page.elsewhere == []


def _choose_time(page, label):
    page.get_by_label("Time").click()
    page.get_by_role("option", name=label).click()


def _answer(page, question=QUESTION):
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    return page.wait_for_selector(".answer").inner_text()


@pytest.mark.parametrize("screen", WIDTHS)
def test_a_time_a_place_a_question_and_an_answer(cell, opened, served, screen):
    cell("page", "time, place on the map, question, answer", screen)
    page, (_, times) = opened(screen), served
    _fits(page)
    before = page.get_attribute("img.locator", "src")
    later = times[-1].replace("T", " ")
    _choose_time(page, later)
    page.wait_for_function("src => document.querySelector('img.locator').src !== src", arg=before)
    assert later in page.inner_text(".cf:has(> img.locator)")

    # The map goes from 180°W to 180°E and, by half a cell around centers of 80°, from 85°N to 85°S.
    before = page.get_attribute("img.locator", "src")
    box = page.locator("img.locator").bounding_box()
    position = {"x": 0.75 * box["width"], "y": 0.25 * box["height"]}
    (page.locator("img.locator").tap if screen == "phone" else page.locator("img.locator").click)(
        position=position
    )
    page.wait_for_function("src => document.querySelector('img.locator').src !== src", arg=before)
    latitude, longitude = map(float, page.get_by_label("Place").input_value().split(","))
    assert (
        abs(latitude - (85 - 0.25 * 170)) <= 2 * 170 / box["height"]
    )  # two pixels: pointers have whole ones
    assert abs(longitude - 90) <= 2 * 360 / box["width"]

    said = _answer(page)
    assert re.fullmatch(r"Mean temperature -?\d+ °C\.", said)
    told = page.inner_text(".told")
    assert "✓ right" in told
    assert later in told
    assert "mean temperature" in told
    shown = page.locator(".told .maps img")
    assert shown.count() == 2  # the field, and where the words looked
    assert "Where the words looked" in told
    assert all(
        shown.evaluate_all("found => found.map(i => i.complete && i.naturalWidth > 100 && i.alt.length > 10)")
    )
    assert page.locator(".told").is_visible()
    _fits(page)


def test_a_wrong_answer_is_called_so_and_what_it_needs_is_drawn(cell, opened, told):
    cell("page", "wrong answer, hidden regions", "desktop")
    told["by"] = 9
    page = opened("desktop")
    page.get_by_label("Hide region after region").check()
    said = _answer(page)
    words = page.inner_text(".told")
    assert "✗ wrong" in words
    assert said in words
    assert page.locator(".told .maps img").count() == 3
    assert "What the words need" in words
    _fits(page)


@pytest.mark.parametrize("screen", ["desktop", "phone"])
def test_mistakes_are_told_and_the_page_lives_on(cell, opened, screen):
    cell("page", "bad place, empty question", screen)
    page = opened(screen)
    place = page.get_by_label("Place")
    place.fill("Nowherechester")
    place.press("Enter")
    notice = page.wait_for_selector("#cf-notice .error")
    assert "Nowherechester" in notice.inner_text()
    assert "Traceback" not in notice.inner_text()
    assert page.locator("img.locator").is_visible()  # the map of the last good place

    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function("document.querySelectorAll('.error').length === 2")  # there is no answer, either

    place.fill("10,20")
    place.press("Enter")
    page.wait_for_selector("#cf-notice", state="hidden")
    page.get_by_label("Question", exact=True).fill("   ")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function("document.querySelector('.error')?.innerText.startsWith('question')")
    _fits(page)

    assert _answer(page).startswith("Mean temperature")
    assert page.locator(".error").count() == 0
    _fits(page)


def test_it_can_be_asked_with_a_keyboard(cell, opened):
    cell("page", "keyboard", "desktop")
    page = opened("desktop")

    def tab_to(name):
        """Forward, from one to the next, until it has the focus; a bound, as a trap would never let go."""
        for _ in range(30):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "(() => { const e = document.activeElement; const label = e.closest('label');"
                " return e.ariaLabel || label?.innerText || e.innerText; })()"
            )
            if (focused or "").strip().startswith(name):
                return
        raise AssertionError(f"{name} was not reached")

    before = page.get_attribute("img.locator", "src")
    tab_to("Place")
    page.keyboard.press("Control+A")
    page.keyboard.type("-20,130")
    page.keyboard.press("Enter")
    page.wait_for_function("src => document.querySelector('img.locator').src !== src", arg=before)
    tab_to("Question")
    page.keyboard.press("Control+A")
    page.keyboard.type(QUESTION)
    tab_to("Ask")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.wait_for_selector(".answer").inner_text().startswith("Mean temperature")
    assert "20°S 130°E" in page.inner_text(".told")
    _fits(page)


def test_an_example_is_asked_by_a_click(cell, opened):
    cell("page", "example question", "desktop")
    page = opened("desktop")
    example = page.locator(".gallery button, .gallery-item").first
    words = example.inner_text()
    example.click()
    page.wait_for_selector(".answer")
    assert page.get_by_label("Question", exact=True).input_value() == words
    assert words in page.inner_text(".told")
    _fits(page)


@pytest.mark.parametrize("screen", WIDTHS)
def test_letters_can_be_read(cell, opened, screen):
    cell("page", "contrast, size of letters", screen)
    page = opened(screen)
    page.get_by_label("Place").fill("Nowherechester")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_selector(".error")
    assert page.evaluate(HARD_TO_READ)[1] == []
    page.get_by_label("Place").fill("10,20")
    _answer(page)
    seen, bad = page.evaluate(HARD_TO_READ)
    assert seen > 20
    assert bad == []


def test_other_addresses_of_this_machine_lead_nowhere(cell, served):
    """Every address that begins with 127 is this machine: a server on all of them would answer at 127.0.0.2."""
    cell("page", "bound to 127.0.0.1 only", "desktop")
    port = served[0]
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    for address in ("127.0.0.2", "::1"):
        with pytest.raises(OSError, match=r"refused|unreachable|assign|family"):
            socket.create_connection((address, port), timeout=10)
