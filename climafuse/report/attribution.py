"""One picture of where a fact comes from: the field, where the words looked, and what they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from climafuse.data.window import Window
from climafuse.evaluation.attribution import Attention, Occlusion
from climafuse.facts import Fact, agrees, extract, sources, window_box
from climafuse.report.maps import Layer, draw_map, drawn_variables

_COLORS = {True: "#2e8b57", False: "#c0392b", None: "#8a94a0"}
_VERDICTS = {True: "right", False: "wrong", None: "not to be checked"}
LEAST_DROP = 0.1  # nats; a word that was certain still has nine tenths of its probability


# Beside whose fields the wind is drawn; and of extremes, whose place is known though it was not asked for.
_WINDY = ("ws10", "wd10", "msl")
_PLACES = {"maximum": "maximum_position", "minimum": "minimum_position"}


def field_of(window: Window, fact: Fact | None) -> tuple[Window, str]:
    """What to draw of a fact.

    Args:
        window: The fields.
        fact: What is said of them; None for anything.

    Returns:
        The window, without wind where that tells nothing of the fact, and the canonical name of the field.
    """
    about = () if fact is None else ("ws10", "msl") if fact.variable == "wd10" else sources(fact.variable)
    available = window.available()
    held = [name for name in about if name in available and name not in ("u10", "v10")]
    name = held[0] if held else drawn_variables(available or window.variables)[0]
    return (window if fact is not None and fact.variable in _WINDY else without_wind(window, name)), name


def without_wind(window: Window, *kept: str) -> Window:
    """The window without wind components, but those that are named."""
    indices = [i for i, name in enumerate(window.variables) if name in kept or name not in ("u10", "v10")]
    return replace(
        window, fields=window.fields[:, indices], variables=tuple(window.variables[i] for i in indices)
    )


@dataclass(frozen=True)
class Marks:
    """Places to mark on the maps of an answer.

    Args:
        star: Latitude and longitude, in degrees, where the fields have what was asked for.
        cross: Likewise, where the answer puts it instead.
        is_beyond: The answer puts it where the maps do not reach.
    """

    star: tuple[float, float] | None = None
    cross: tuple[float, float] | None = None
    is_beyond: bool = False

    @property
    def words(self) -> str:
        """What they are; "" where there is none."""
        named = (
            ("the star is where the fields have it", self.star is not None),
            ("the cross where the answer puts it", self.cross is not None),
            ("the answer puts it outside this map", self.is_beyond),
        )
        return ", ".join(words for words, holds in named if holds)


def marks_of(window: Window, truth: Fact, said: Sequence[Fact]) -> Marks:
    """The places of a fact, and of what was said instead.

    Args:
        window: The fields.
        truth: The fact; any value where the fields have none.
        said: What the answer states.
    """
    stated = next((fact for fact in said if fact.key == truth.key), None)
    star = _place_of(window, truth)
    if stated is None or not isinstance(stated.value, tuple) or agrees(stated, truth):
        return Marks(star)
    return Marks(star, stated.value) if _holds(window, stated.value) else Marks(star, is_beyond=True)


def _holds(window: Window, place: tuple[float, float]) -> bool:
    box = window_box(window)
    east = (place[1] - box.longitude + 180) % 360 - 180
    return abs(place[0] - box.latitude) <= box.height / 2 and abs(east) <= box.width / 2


def _place_of(window: Window, fact: Fact) -> tuple[float, float] | None:
    """Where the fields have what a fact is about; None where that is no single place."""
    if isinstance(fact.value, tuple):
        return fact.value
    kind = _PLACES.get(fact.kind)
    found = [one for one in extract(window, kinds=[kind]) if one.variable == fact.variable] if kind else []
    return next((one.value for one in found if isinstance(one.value, tuple)), None)


def attribution_layers(attention: Attention | None, occlusion: Occlusion | None) -> list[Layer]:
    """Attention and occlusion of a fact's words as panels of a map; what is None is left out."""
    layers = []
    if attention is not None:
        layers.append(
            Layer(
                "Where the words looked",
                f"share of attention; {attention.whole_box:.0%} on whole-box statistics",
                100 * attention.share.sum(axis=0),
                "%",
                least=1.0,
            )
        )
    if occlusion is not None:
        highest, lowest = float(occlusion.drop.max()), float(occlusion.drop.min())
        lost = f"at most {highest:.2g}" if highest >= LEAST_DROP else f"nowhere as much as {LEAST_DROP:g}"
        layers.append(
            Layer(
                "What the words need",
                f"log-probability lost where hidden: {lost} nats",
                occlusion.drop,
                "nats",
                centered=lowest < -max(0.05 * highest, LEAST_DROP),
                least=LEAST_DROP,
            )
        )
    return layers


def draw_attribution(
    window: Window,
    variable: str | Sequence[str],
    *,
    attention: Attention | None,
    occlusion: Occlusion | None,
    path: str | Path,
    prompt: str,
    answer: str,
    right: bool | None = None,
    truth: str | None = None,
    title: str | None = None,
    marks: Marks | None = None,
    box: np.ndarray | None = None,
) -> Path:
    """Draws the field of a fact, the attention and the occlusion of its words side by side, and writes one picture.

    Args:
        window: What the model was shown.
        variable: Canonical name of the field, or several.
        attention: Of the words; None for no panel.
        occlusion: Of the words; None for no panel.
        path: Where to write; the suffix chooses the format (.png, .pdf, .svg).
        prompt: The question.
        answer: The answer.
        right: Whether the fact is right; None where that cannot be told.
        truth: What the fields say.
        title: Heading.
        marks: Places to mark.
        box: [H, W] bool, a rectangle of cells to outline, such as that of a planted signal.

    Returns:
        The path.

    Raises:
        ClimafuseError: See `draw_map`.
    """
    marks = marks or Marks()
    verdict = _VERDICTS[right] if truth is None else f"{_VERDICTS[right]}: the fields say {truth}"
    verdict += f"; {marks.words}" if marks.words else ""
    return draw_map(
        window,
        variable,
        path=path,
        layers=attribution_layers(attention, occlusion),
        title=title,
        caption=f"{prompt} {answer} ({verdict})",
        caption_color=_COLORS[right],
        place=marks.star,
        cross=marks.cross,
        outline=box,
    )
