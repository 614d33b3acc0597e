"""Answers to look at: chosen alike every time, told as the fields have it, drawn where they are."""

from __future__ import annotations

import numpy as np
import pytest

from climafuse.data.window import Box, Window
from climafuse.errors import MissingValuesError
from climafuse.facts import extract, fact_value, spoken, window_box
from climafuse.report.maps import Layer, drawn_variables
from climafuse.report.samples import _is_wide, choose_samples, make_card, make_cards
from tests.evaluation.stores import random_store
from tests.report.pages import evaluation, record, sample


def nothing(window, prompt, answer, fact):
    return []


# ---- Which ones ----------------------------------------------------------------------------------------------


def test_the_choice_mixes_right_and_wrong_and_kinds():
    kinds = ("mean", "maximum", "minimum", "change", "tendency")
    samples = [sample(n, right=n % 10 != 0, kind=kinds[n // 20]) for n in range(100)]
    chosen = choose_samples(samples, 10)
    assert len(chosen) == 10
    assert sum(not entry["right"] for entry in chosen) == 4
    assert {entry["truth"]["kind"] for entry in chosen} == set(kinds)
    counts = [sum(entry["truth"]["kind"] == kind for entry in chosen) for kind in kinds]
    assert max(counts) == 2
    assert [entry["window"] for entry in chosen] == sorted(entry["window"] for entry in chosen)
    assert choose_samples(samples, 10) == chosen


def test_a_poor_model_is_shown_as_it_is():
    """Fewer right ones than six: the rest is wrong, too."""
    chosen = choose_samples([sample(n, right=n == 3) for n in range(20)], 10)
    assert [entry["right"] for entry in chosen].count(True) == 1
    assert len(chosen) == 10
    assert len(choose_samples([sample(n) for n in range(20)], 10)) == 10
    assert len(choose_samples([sample(0)], 10)) == 1
    assert choose_samples([], 10) == choose_samples([sample(0)], 0) == []


@pytest.mark.parametrize(
    "changes",
    [{"condition": "shuffled"}, {"right": None}, {"right": 1}, {"truth": None}, {"truth": {"kind": "mean"}},
     {"truth": {"kind": "nonsense", "variable": "t2m", "value": 3.0}}],
    ids=str,
)  # fmt: skip
def test_what_is_no_sample_is_passed_over(changes):
    good = sample(1)
    assert choose_samples([sample(0) | changes, good, None, "text"], 10) == [good]


# ---- What they say -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store():
    return random_store()


def of_store(store, kind, variable, answer, *, step=11, **changes):
    """A sample about the fields of the store, with the exact fact from them."""
    window = store.window(step, Box(5, 25, 8, 8), 2)
    box = window_box(window)
    truth = next(fact for fact in extract(window) if (fact.kind, fact.variable) == (kind, variable))
    return sample(0) | {
        "time": str(store.time[step])[:16],
        "box": {"south": box.south, "north": box.north, "west": box.west, "east": box.east},
        "truth": truth.to_dict(),
        "answer": answer.format(fact_value(spoken(truth))),
        **changes,
    }  # fmt: skip


def test_a_card_tells_what_was_said_and_what_is_true(store):
    found = of_store(store, "mean", "t2m", "The temperature averages {}.")
    card = make_card(found, store, history=2, explain=nothing)
    window = store.window(11, Box(5, 25, 8, 8), 2)
    weights = np.cos(np.deg2rad(window.latitude))[:, None] * np.ones(len(window.longitude))
    exact = np.average(window.field("t2m")[-1], weights=weights) - 273.15
    assert card.exact == f"{exact:.2f} °C"
    assert card.truth == f"{round(exact)} °C"
    (fact,) = card.facts
    assert (fact["fact"], fact["right"], fact["field"]) == ("mean temperature", True, card.truth)
    (picture,) = card.pictures
    assert picture.content[:4] == b"RIFF"
    low, high = window.field("t2m")[-1].min() - 273.15, window.field("t2m")[-1].max() - 273.15
    assert f"from {low:.4g} to {high:.4g} °C" in picture.alternative
    assert card.where in picture.alternative
    assert card.missing == ""


@pytest.mark.parametrize(
    ("longitude", "width", "wide"), [(40, 8, False), (40, 24, True), (0, 24, True), (40, 12, False)]
)
def test_wide_boxes_are_called_so(longitude, width, wide):
    """Eight degrees high around 5°N; over Greenwich, too, where longitudes begin anew."""
    columns = (longitude + np.arange(width) - width / 2 + 0.5) % 360
    window = Window(
        np.zeros((1, 1, 8, width), np.float32), ("t2m",), np.array(["2026-03-01"], "datetime64[s]"),
        np.arange(1.5, 9.5), columns,
    )  # fmt: skip
    assert _is_wide(window) is wide


def test_places_are_marked_and_said_to_be(store):
    found = of_store(store, "maximum_position", "t2m", "The temperature is highest at 1°N, 21°E.")
    card = make_card(found, store, history=2, explain=nothing)
    assert card.topic == "place of highest temperature"
    assert "star" in card.pictures[0].caption
    assert "star" in card.pictures[0].alternative


@pytest.mark.parametrize(
    ("variable", "kind"), [("wd10", "direction"), ("ws10", "mean"), ("tp", "mean"), ("msl", "change")]
)
def test_every_variable_has_a_map(store, variable, kind):
    card = make_card(of_store(store, kind, variable, "no fact at all"), store, history=2, explain=nothing)
    assert len(card.pictures) == 1
    assert card.facts == ()


@pytest.mark.parametrize(
    "changes",
    [{"time": "2026-03-11T00:00"}, {"box": {"south": 0.5, "north": 8.5, "west": 22.0, "east": 30.0}}, {"box": None},
     {"box": {"south": 60.0, "north": 70.0, "west": 22.0, "east": 30.0}}, {"time": None}],
    ids=str,
)  # fmt: skip
def test_other_fields_than_those_evaluated_give_no_map(store, changes):
    """Another time, another box, or the same numbers of a store with other values."""
    found = of_store(store, "mean", "t2m", "The temperature averages {}.") | changes
    card = make_card(found, store, history=2, explain=nothing)
    assert card.pictures == ()
    assert "not found" in card.missing
    assert card.facts[0]["right"] is True  # by what the evaluation has


def test_where_the_words_come_from_is_drawn(store):
    asked = []

    def explain(window, prompt, answer, fact):
        asked.append((prompt, answer, fact.key[:2]))
        values = np.zeros((len(window.latitude), len(window.longitude)))
        values[6, 5] = 0.6  # rows from 1°N, columns from 21°E
        return [Layer("Where the words looked", "share of attention", values, "%")]

    card = make_card(of_store(store, "mean", "t2m", "It is {}."), store, history=2, explain=explain)
    assert [picture.content[:4] for picture in card.pictures] == [b"RIFF"] * 2
    assert "strongest at 7°N 26°E" in card.pictures[1].alternative
    assert asked == [(card.prompt, card.answer, ("mean", "t2m"))]


def test_what_cannot_be_drawn_is_said(store):
    def explain(window, prompt, answer, fact):
        raise MissingValuesError("t2m", expected="a value", received="none", remedy="Choose another time.")

    card = make_card(of_store(store, "mean", "t2m", "It is {}."), store, history=2, explain=explain)
    assert len(card.pictures) == 1
    assert "Choose another time." in card.missing


# ---- Of a run ------------------------------------------------------------------------------------------------


def test_fields_behind_a_uri_are_not_asked_for():
    """A file that somebody else made makes no request: conftest would fail one, the note tells."""
    found = evaluation()
    found["data"]["source"] = "https://example.org/fields.zarr"
    cards, notes = make_cards(record(evaluation=found), count=3)
    assert len(cards) == 3
    assert all(not card.pictures for card in cards)
    assert "a report opens no network" in notes[0]


def test_fields_that_are_not_there_are_said_to_be(tmp_path):
    found = evaluation()
    found["data"]["source"] = str(tmp_path / "none.nc")
    cards, notes = make_cards(record(evaluation=found), count=2)
    assert len(cards) == 2
    assert "could not be opened" in notes[0]
    assert make_cards(record(evaluation={})) == ([], [])


def test_drawn_variables_come_in_the_order_people_ask():
    assert drawn_variables(("u10", "msl", "t2m", "tp")) == ["t2m", "msl"]
    assert drawn_variables(("u10", "v10", "q850")) == ["u10", "v10"]
