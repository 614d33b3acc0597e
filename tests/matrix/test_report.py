"""Reports in a real browser, at the width of a desk, of a phone, in the dark and on paper.

`scripts/matrix report` finds or installs a Chromium. Where it was asked for and none is there, these tests fail: a
page that nobody has opened was not tested. Whatever a page asks of the network is refused and counted.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from climafuse.report.html import write_report
from climafuse.report.maps import Layer
from climafuse.report.samples import make_card
from tests.evaluation.stores import random_store
from tests.matrix.browsers import HARD_TO_READ, SCREENS, browser, note_complaints  # noqa: F401 (a fixture)
from tests.report.pages import HOSTILE, evaluation, record
from tests.report.test_html import card, hostile
from tests.report.test_samples import of_store

pytestmark = pytest.mark.slow

LARGEST = 5_000_000  # bytes of a report


def _cards():
    """Real maps of a constructed store."""
    store = random_store()

    def explain(window, prompt, answer, fact):
        values = np.arange(len(window.latitude) * len(window.longitude), dtype=float)
        values = values.reshape(len(window.latitude), len(window.longitude))
        return [Layer("Where the words looked", "share of attention", values, "%")] * 2

    kinds = [
        ("mean", "t2m"),
        ("maximum_position", "t2m"),
        ("direction", "wd10"),
        ("mean", "ws10"),
        ("mean", "tp"),
    ]
    return [
        make_card(
            of_store(store, kind, variable, "It is {}.", right=right), store, history=2, explain=explain
        )
        for kind, variable in kinds
        for right in (True, False)
    ]


def _long(run):
    """Names and answers without a space, as long as they get."""
    found = evaluation()
    for row in found["conditions"].values():
        row["by_kind"] = {"k" * 80: 0.5, **row["by_kind"]}
        row["by_kind_and_variable"] = {f"{'k' * 80}/{'v' * 80}": 0.5, **row["by_kind_and_variable"]}
        row["numeric_error"] = {f"{'k' * 80}/{'v' * 80}": 123456.0, **row["numeric_error"]}
    found["conditions"]["c" * 100] = {"f1": 0.5}
    found["verdict"]["checks"][0] |= {"name": "n" * 300, "meaning": "m" * 500}
    found["differences"]["d" * 300] = {"difference": 0.1}
    found["polling"]["p" * 100] = found["polling"]["random"]
    found["withheld"]["w" * 100] = found["withheld"]["t2m"]
    words = "w" * 2000
    log = [{**line, f"gate/{'g' * 200}": 1.0} for line in run.log]
    cards = [
        card(prompt=words, answer=words, topic=words, where=words, truth=words, exact="e" * 999, pictures=())
    ]
    return dataclasses.replace(run, evaluation=found, log=log, folder=run.folder.with_name("r" * 200)), cards


def _falling(run):
    """Losses that fall from 5 to a tenth of a thousandth, as of a model that learns its windows by heart."""
    steps = range(1, 101)
    return dataclasses.replace(
        run, log=[{"step": n, "loss": 5 / n**2, "eval_loss": 1 / n, "gate/a": n / 1e5} for n in steps]
    )


def _hostile(run):
    words = dict.fromkeys(
        ("prompt", "answer", "topic", "where", "when", "truth", "exact", "missing"), HOSTILE
    )
    ill = card(
        **words, facts=({"fact": HOSTILE, "said": HOSTILE, "field": HOSTILE, "right": None},), pictures=()
    )
    changes = {part: hostile(getattr(run, part)) for part in ("config", "manifest", "record", "evaluation")}
    return dataclasses.replace(run, **changes), [ill]


CONTENTS = {
    "everything": lambda: (record(), _cards()),
    "nothing measured": lambda: (record(evaluation={}, log=[], record={}), []),
    "not grounded": lambda: (
        record(evaluation=evaluation(verdict={"grounded": False, "checks": []}), stale=True),
        [],
    ),
    "long words": lambda: _long(record()),
    "losses over four powers of ten": lambda: (_falling(record()), []),
    "hostile": lambda: _hostile(record()),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Each content, written once."""
    folder = tmp_path_factory.mktemp("reports")
    written: dict[str, Path] = {}

    def report(content):
        if content not in written:
            run, cards = CONTENTS[content]()
            written[content] = write_report(run, folder / f"{len(written)}.html", cards=cards)
        return written[content]

    return report


@pytest.fixture
def opened(browser, reports):  # noqa: F811
    """Opens a report and returns the page, with what it complained about and asked for."""
    contexts = []

    def open_(content, screen):
        context = browser.new_context(**SCREENS[screen])
        contexts.append(context)
        page = context.new_page()
        page.requests = []
        note_complaints(page)
        url = reports(content).as_uri()

        def answer(route):
            if route.request.url in (url,) or route.request.url.startswith("data:"):
                route.continue_()
            else:
                page.requests.append(route.request.url)
                route.abort()

        page.route("**/*", answer)
        page.goto(url, wait_until="load")
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("content", CONTENTS)
def test_a_report_is_quiet_and_fits(cell, opened, reports, content, screen):
    cell("report", content, screen)
    page = opened(content, screen)
    assert page.complaints == []
    assert page.requests == []
    width = SCREENS[screen]["viewport"]["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing hangs out of the page, but inside of what can be scrolled by itself.
    outside = page.evaluate(
        """width => [...document.body.querySelectorAll('*')].filter(element => {
            if (element.closest('.scroll, svg, .hidden, .skip')) return false;
            const box = element.getBoundingClientRect();
            return box.width > 0 && (box.right > width + 1 || box.left < -1);
        }).map(element => element.outerHTML.slice(0, 120))""",
        width,
    )
    assert outside == []
    images = page.evaluate(
        "[...document.images].map(i => [i.complete && i.naturalWidth > 100, i.alt.length > 10])"
    )
    assert all(all(image) for image in images)
    if content == "everything":
        assert len(images) == 30
    assert page.title().endswith(": climafuse report")
    assert page.evaluate("document.scripts.length") == 0
    assert reports(content).stat().st_size < LARGEST


@pytest.mark.parametrize("screen", SCREENS)
def test_letters_at_axes_stand_alone(cell, opened, screen):
    """Each in one line, inside of its panel, and none over another."""
    cell("report", "losses over four powers of ten", f"{screen}: axes")
    page = opened("losses over four powers of ten", screen)
    found = page.evaluate(
        """() => [...document.querySelectorAll('.plot')].flatMap(plot => {
            const panel = plot.closest('.panel').getBoundingClientRect();
            const ticks = [...plot.querySelectorAll('.y span')].map(tick => tick.getBoundingClientRect());
            return ticks.map((box, number) => [
                box.height < 20 && box.left >= panel.left,
                ticks.every((other, n) => n === number || other.top >= box.bottom - 4 || other.bottom <= box.top + 4),
            ]);
        })"""
    )
    assert len(found) >= 6
    assert all(map(all, found))


@pytest.mark.parametrize("screen", SCREENS)
def test_letters_can_be_read(cell, opened, screen):
    """WCAG 2.2, 1.4.3: contrast of text on its ground at least 4.5; and no letter smaller than 12 pixels."""
    cell("report", "everything", f"{screen}: contrast, size of letters")
    page = opened("everything", screen)
    found = page.evaluate(HARD_TO_READ)
    assert found[0] > 300
    assert found[1] == []


def test_it_prints(cell, opened, tmp_path):
    cell("report", "everything", "print")
    page = opened("everything", "desktop")
    page.emulate_media(media="print", color_scheme="dark")
    # On paper the ground is white, whatever the screen.
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.contents')).display") == "none"
    printed = page.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
    assert printed.startswith(b"%PDF-")
    assert 3 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 30
    # Nothing is cut off at the edge of an A4 page: 210 mm less the margins of 14 mm, at 96 dots an inch.
    page.set_viewport_size({"width": 688, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    # No unit is broken: "hP" and "a" below it, or two lines of "m"., however narrow the column.
    page.set_viewport_size({"width": 480, "height": 1000})
    heights = "[...document.querySelectorAll('.unit')].map(e => { const r = document.createRange();"
    heights += " r.selectNodeContents(e); return new Set([...r.getClientRects()].map(b => b.top)).size; })"
    lines = page.evaluate(heights)
    assert len(lines) > 3
    assert max(lines) == 1


def test_it_can_be_read_with_a_keyboard(cell, opened):
    cell("report", "everything", "keyboard")
    page = opened("everything", "desktop")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#verdict")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('nav, main') !== null")
    scrollable = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.tabIndex !== 0 || !"
        "(e.getAttribute('aria-label') || document.getElementById(e.getAttribute('aria-labelledby')))).length"
    )
    assert scrollable == 0
