"""Headless Chromium for the tests of pages, and what any page is asked in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

SCREENS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone": {
        "viewport": {"width": 360, "height": 740},
        "color_scheme": "light",
        "is_mobile": True,
        "has_touch": True,
    },
    "dark": {"viewport": {"width": 768, "height": 1024}, "color_scheme": "dark"},
}

# WCAG 2.2, 1.4.3: contrast of text on its ground at least 4.5; and no letter smaller than 12 pixels. How many texts
# were looked at, and those that fail.
HARD_TO_READ = """() => {
    const parse = color => {
        const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 :
        ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = element => {
        for (; element; element = element.parentElement) {
            const color = parse(getComputedStyle(element).backgroundColor);
            if (color[3] === 255) return color;
        }
        return [255, 255, 255, 255];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), bad = [];
    let seen = 0;
    for (let node; node = walker.nextNode();) {
        const element = node.parentElement;
        if (!node.data.trim() || element.closest('.hidden, .skip, .hide') || !element.offsetParent) continue;
        const style = getComputedStyle(element);
        const [a, b] = [light(parse(style.color)), light(ground(element))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        seen += 1;
        if (contrast < 4.5 || parseFloat(style.fontSize) < 12)
            bad.push([node.data.trim().slice(0, 40), contrast.toFixed(2), style.fontSize]);
    }
    return [seen, bad];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; where it was asked for and none is there, the tests fail."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("no Playwright here: run `scripts/matrix report` or `page`, which install it")
    names = (os.environ.get("CLIMAFUSE_CHROMIUM"), "chromium-headless-shell", "chromium", "google-chrome")
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        pytest.fail(
            "no Chromium here: run `scripts/matrix report` or `page`, which install one, or set CLIMAFUSE_CHROMIUM"
        )
    with sync_playwright() as playwright:
        # The sandbox of Chromium wants namespaces, which containers seldom give to root.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def note_complaints(page: Any) -> None:
    """Collect in `page.complaints` what its console, its scripts and its network say."""
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(f"failed: {request.url[:80]}"))
