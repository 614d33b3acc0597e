"""Some answers to look at: which ones, what they say beside what the fields say, and their maps."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from climafuse.data.store import TrainingStore
from climafuse.data.times import format_time
from climafuse.data.variables import VARIABLES
from climafuse.data.window import Box, Window
from climafuse.errors import ClimafuseError, UsageError
from climafuse.evaluation.attribution import attention, occlusion
from climafuse.facts import (
    Fact,
    check_facts,
    compare,
    extract,
    fact_value,
    parse,
    rule_of,
    spoken,
    topic_of,
    window_box,
)
from climafuse.facts.kinds import Value
from climafuse.json_values import number, rows, table, text
from climafuse.model.inference import Reader, load_model
from climafuse.report.attribution import Marks, attribution_layers, field_of, marks_of, without_wind
from climafuse.report.maps import Layer, draw_map, spoken_field
from climafuse.report.runs import RunRecord
from climafuse.training.dataset import open_store

MOST_WRONG = 4  # of ten answers
_WIDE = 1.6  # width over height of a map
_PANEL_AREA = 3.6  # square inches: letters can be read where three maps stand side by side

Explain = Callable[[Window, str, str, Fact], Sequence[Layer]]


@dataclass(frozen=True)
class Picture:
    """A drawn map.

    Args:
        content: WebP.
        alternative: What it shows, in words.
        caption: One line under it.
        title: What it is, in a few words.
    """

    content: bytes
    alternative: str
    caption: str
    title: str = ""


@dataclass(frozen=True)
class SampleCard:
    """One answer, ready to be shown.

    Args:
        prompt: What was asked.
        answer: What the model said.
        right: Whether it counts.
        topic: What it is about, in words.
        where: Box, in words.
        when: Valid time, in words.
        truth: What the fields say, rounded as one would say it.
        exact: The same at full precision.
        facts: Rows of `check_facts`.
        pictures: Maps.
        wide: The maps are much wider than high, and stand below each other.
        missing: Why there is no map, or only one; "" where nothing is missing.
    """

    prompt: str
    answer: str
    right: bool
    topic: str
    where: str
    when: str
    truth: str
    exact: str
    facts: tuple[Mapping[str, Any], ...] = ()
    pictures: tuple[Picture, ...] = ()
    wide: bool = False
    missing: str = ""


@dataclass(frozen=True)
class _Told:
    """A sample of an evaluation whose parts are what they should be."""

    number: int
    sample: Mapping[str, Any]
    truth: Fact
    right: bool

    @property
    def topic(self) -> tuple[str, str]:
        return self.truth.kind, self.truth.variable

    @property
    def window(self) -> str:
        return text(self.sample.get("window"))


def make_cards(
    run: RunRecord,
    *,
    count: int = 10,
    attribution: bool = True,
    reader: Reader | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[SampleCard], list[str]]:
    """Make the answers of a run's evaluation ready to be shown.

    Args:
        run: The run.
        count: How many answers.
        attribution: Whether to draw where the words come from.
        reader: The model of the run; None to load it for that.
        progress: Called with how many are done and how many there are.

    Returns:
        The answers, and what is to be said about them: what could not be had, and why.
    """
    chosen = choose_samples(rows(run.evaluation.get("samples")), count)
    notes: list[str] = []
    if not chosen:
        return [], notes
    store = None
    try:
        store = _open_fields(run)
    except ClimafuseError as error:
        notes.append(f"The fields could not be opened, so there are no maps. {error}")
    if not attribution or store is None or run.stale:
        reader = None
        if attribution and store is not None:
            notes.append("Where the words come from is not drawn: another model was evaluated.")
    elif reader is None:
        try:
            reader = load_model(run.model)
        except ClimafuseError as error:
            notes.append(f"The model could not be loaded, so where its words come from is not drawn. {error}")
    cards = []
    for number_, sample in enumerate(chosen):
        cards.append(make_card(sample, store, history=run.settings.data.history, explain=_explainer(reader)))
        if progress is not None:
            progress(number_ + 1, len(chosen))
    return cards, notes


def _open_fields(run: RunRecord) -> TrainingStore:
    """The fields that were evaluated, if they lie on this machine: a report makes no request of any network."""
    source = text(table(run.evaluation, "data").get("source")) or run.settings.data.source
    if "://" in source:
        raise UsageError(
            source,
            expected="fields on this machine, as a report opens no network",
            received="a URI",
            remedy="Copy them, and evaluate with --climate.",
        )
    return open_store(replace(run.settings, data=replace(run.settings.data, source=source, pairs=None)))


def _explainer(reader: Reader | None) -> Explain:
    """Where a fact comes from, by attention and by occlusion; nothing without a model."""

    def explain(window: Window, prompt: str, answer: str, fact: Fact) -> list[Layer]:
        if reader is None or not answer:
            return []
        said = next(
            (stated for stated in parse(answer, prompt, key=fact.key) if stated.key == fact.key), None
        )
        looked = attention(reader, window, prompt, answer, said)
        return attribution_layers(looked, occlusion(reader, window, prompt, answer, said))

    return explain


def choose_samples(samples: Sequence[Any], count: int) -> list[Mapping[str, Any]]:
    """Choose right and wrong answers about many kinds of fact; the same ones every time.

    At most `MOST_WRONG` of ten are wrong, however many there are. One by one, the first answer is taken of those whose
    kind and variable, whose kind and whose window were taken least often.

    Args:
        samples: Those of an evaluation; only answers under the true field are looked at.
        count: How many.
    """
    told = _told(samples)
    wrong = [entry for entry in told if not entry.right]
    right = [entry for entry in told if entry.right]
    num_wrong = min(len(wrong), max(MOST_WRONG * count // 10, count - len(right)))
    taken: list[_Told] = []
    for group, places in ((wrong, num_wrong), (right, min(len(right), count - num_wrong))):
        for _ in range(places):
            topics = Counter(entry.topic for entry in taken)
            kinds = Counter(entry.truth.kind for entry in taken)
            windows = Counter(entry.window for entry in taken)
            left = [entry for entry in group if entry not in taken]
            taken.append(
                min(
                    left,
                    key=lambda e: (topics[e.topic], kinds[e.truth.kind], windows[e.window], e.number),
                )
            )
    return [entry.sample for entry in sorted(taken, key=lambda entry: entry.number)]


def _told(samples: Sequence[Any]) -> list[_Told]:
    found = []
    for position, sample in enumerate(samples):
        sample = table(sample)
        if sample.get("condition", "true") != "true" or not isinstance(sample.get("right"), bool):
            continue
        truth = _fact(sample.get("truth"))
        if truth is not None:
            found.append(_Told(position, sample, truth, sample["right"]))
    return found


def _fact(value: Any) -> Fact | None:
    """A fact of a kind and variable that are known, or None."""
    try:
        fact = Fact.from_dict(table(value))
        rule_of(fact)
    except ClimafuseError:
        return None
    return fact


def make_card(
    sample: Mapping[str, Any], store: TrainingStore | None, *, history: int, explain: Explain
) -> SampleCard:
    """Make one answer ready to be shown.

    Args:
        sample: One that `choose_samples` has chosen.
        store: The fields; None where they cannot be had, which leaves out the maps.
        history: Steps of a window.
        explain: Says where the fact comes from, for a second map; none where it cannot be told.
    """
    truth = _fact(sample.get("truth"))
    assert truth is not None  # it was chosen
    prompt, answer = text(sample.get("prompt")), text(sample.get("answer"))
    window = None if store is None else _window(store, sample, truth, history)
    card = SampleCard(
        prompt=prompt,
        answer=answer,
        right=bool(sample.get("right")),
        topic=topic_of(truth),
        where=_place(table(sample.get("box"))),
        when=text(sample.get("time"), 40).replace("T", " "),
        truth=fact_value(spoken(truth)),
        exact=exact_value(truth),
        facts=tuple(_checks(answer, prompt, truth, window)),
        missing="" if window is not None else "No map: the fields that were evaluated were not found.",
    )
    if window is None:
        return card
    card = replace(card, wide=_is_wide(window))
    pictures: list[Picture] = []
    try:
        where = f"{card.where} at {card.when}"
        marks = marks_of(window, truth, parse(answer, prompt, key=truth.key))
        pictures.append(field_picture(window, truth, where, marks))
        for layer in explain(window, prompt, answer, truth):
            pictures.append(layer_picture(window, layer, where, marks))
    except ClimafuseError as error:  # such as nothing but missing values
        return replace(card, pictures=tuple(pictures), missing=f"A map could not be drawn: {error}")
    return replace(card, pictures=tuple(pictures))


def _checks(answer: str, prompt: str, truth: Fact, window: Window | None) -> list[dict[str, Any]]:
    if window is not None:
        return check_facts(answer, window, prompt=prompt, key=truth.key)
    stated = parse(answer, prompt, key=truth.key)
    return [compare(said, truth if said.key == truth.key else None) for said in stated]


def _window(store: TrainingStore, sample: Mapping[str, Any], truth: Fact, history: int) -> Window | None:
    """The window of a sample; None where the store holds no such time or place, or other values there."""
    edges = [number(table(sample.get("box")).get(side)) for side in ("south", "north", "west", "east")]
    if any(edge is None for edge in edges):
        return None
    south, north, west, east = (float(edge) for edge in edges if edge is not None)
    width = (east - west) % 360 or 360.0
    when = [index for index, time in enumerate(store.time) if format_time(time) == sample.get("time")]
    if not when:
        return None
    try:
        box = Box((south + north) / 2, west + width / 2, north - south, width)
        window = store.window(when[0], box, history)
    except ClimafuseError:  # of another store
        return None
    if truth.kind == "absent":
        return window
    found = {fact.key: fact.value for fact in extract(window)}.get(truth.key)
    return window if _equal(found, truth.value) else None


def _equal(one: Value | None, other: Value) -> bool:
    """Whether two exact values are of the same fields."""
    if one is None or isinstance(one, str) or isinstance(other, str):
        return one == other
    return bool(np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-5, atol=1e-4))


def exact_value(truth: Fact) -> str:
    """The value of an exact fact, with two digits more than one would say."""
    rule, value = rule_of(truth), truth.value
    if isinstance(value, int | float):
        return f"{value:.{rule.decimals + 2}f} {rule.unit}".replace(" °", "°", rule.unit == "°")
    if isinstance(value, tuple):
        return fact_value(replace(truth, value=(round(value[0], 3), round(value[1], 3))))
    return value


def _place(box: Mapping[str, Any]) -> str:
    edges = {side: number(box.get(side)) for side in ("south", "north", "west", "east")}
    if any(edge is None for edge in edges.values()):
        return "place not recorded"
    north_south = " to ".join(_degrees(edges[side], "SN") for side in ("south", "north"))
    return f"{north_south}, {' to '.join(_degrees(edges[side], 'WE') for side in ('west', 'east'))}"


def _degrees(value: float | None, letters: str) -> str:
    value = value or 0.0
    if letters == "WE":
        value = (value + 180) % 360 - 180
    return f"{abs(value):.4g}°{letters[value >= 0]}"


def field_picture(window: Window, truth: Fact, where: str, marks: Marks) -> Picture:
    """The field that a fact is about.

    Args:
        window: The fields.
        truth: The fact.
        where: Box and time, in words.
        marks: Places to mark.
    """
    drawn, name = field_of(window, truth)
    values, unit = spoken_field(window, name)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    long_name = VARIABLES[name].long_name if name in VARIABLES else name
    marked = marks.words and f"; {marks.words}"
    return Picture(
        _draw(drawn, name, marks),
        alternative=f"Map of {long_name}, {where}, from {low:.4g} to {high:.4g} {unit}{marked}.",
        caption=f"what the fields hold{marked}",
        title=long_name[:1].upper() + long_name[1:],
    )


def layer_picture(window: Window, layer: Layer, where: str, marks: Marks) -> Picture:
    """Numbers on the cells of a window.

    Args:
        window: The fields.
        layer: The numbers.
        where: Box and time, in words.
        marks: Places to mark.
    """
    strongest = "nowhere"
    if np.isfinite(layer.values).any():
        row, column = np.unravel_index(int(np.nanargmax(layer.values)), layer.values.shape)
        strongest = (
            f"{_degrees(float(window.latitude[row]), 'SN')} {_degrees(float(window.longitude[column]), 'WE')}"
        )
    return Picture(
        _draw(without_wind(window), (), marks, layers=[layer]),
        alternative=f"Map, {layer.title.lower()}, {where}: {layer.detail}; strongest at {strongest}.",
        caption=layer.detail,
        title=layer.title,
    )


def _is_wide(window: Window) -> bool:
    box = window_box(window)
    return bool(box.width * np.cos(np.deg2rad(box.latitude)) > _WIDE * box.height)


def _draw(window: Window, variable: str | tuple[str, ...], marks: Marks, **options: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "map.webp")
        style: dict[str, Any] = {"panel_area": _PANEL_AREA, "headings": False}
        draw_map(window, variable, path=path, place=marks.star, cross=marks.cross, **style, **options)
        return path.read_bytes()
