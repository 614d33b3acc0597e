"""Pairs from windows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.data.pairs import Pair, read_pairs, write_pairs
from climafuse.data.window import Box, Window, select_window
from climafuse.errors import UsageError
from climafuse.facts import (
    FACT_KINDS,
    Fact,
    agrees,
    asked,
    describe,
    extract,
    parse,
    sources,
    spoken,
    window_box,
    withhold,
)
from climafuse.facts.unseen import UNSEEN_NAMES, UNTRAINED_NAMES
from tests.facts.windows import random_window


def _window(number: int) -> Window:
    """Every other one has wind speed as a field, too: without its components it can still be told."""
    window = random_window(np.random.default_rng(number))
    if number % 2 == 0:
        return window
    speed = np.hypot(window.field("u10"), window.field("v10"))[:, None]
    return replace(
        window, variables=(*window.variables, "ws10"), fields=np.concatenate([window.fields, speed], 1)
    )


WINDOWS = [(number, _window(number)) for number in range(40)]
ALL = {"t2m", "u10", "v10", "msl", "tp", "ws10"}


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return list(describe(WINDOWS, questions_per_window=10, bulletins=0.2, abstentions=0.3))


def test_every_text_states_its_facts_and_the_fields_vouch_for_them(pairs: list[Pair]) -> None:
    windows = dict(WINDOWS)
    for pair in pairs:
        facts = [Fact.from_dict(data) for data in pair.facts]
        said = parse(pair.text, pair.prompt)
        assert said == [spoken(fact) for fact in facts] or set(said) == set(map(spoken, facts))
        shown = {fact.key: fact for fact in extract(withhold(windows[pair.sample], pair.withheld))}
        for fact in facts:
            if fact.kind == "absent":
                assert not any(variable == fact.variable for _, variable, _ in shown)
            else:
                assert agrees(fact, shown[fact.key])
                assert shown[fact.key].cell == fact.cell


def test_shares_and_numbers(pairs: list[Pair]) -> None:
    assert len(pairs) == 10 * len(WINDOWS)
    absent = [pair for pair in pairs if pair.facts[0]["kind"] == "absent"]
    several = [pair for pair in pairs if len(pair.facts) > 1]
    assert len(absent) / len(pairs) == pytest.approx(0.3, abs=0.07)
    assert len(several) / len(pairs) == pytest.approx(0.2, abs=0.06)
    withheld = [pair for pair in absent if not _never_held(pair)]
    assert len(withheld) / len(absent) == pytest.approx(0.5, abs=0.12)
    assert {name for pair in withheld for name in pair.withheld} == ALL
    assert {pair.sample for pair in pairs} == {number for number, _ in WINDOWS}
    assert {pair.times for pair in pairs} == {
        (np.datetime64("2026-03-25T12"), np.datetime64("2026-03-26T12"))
    }


def test_what_is_missing_does_not_tell_that_there_is_no_answer(pairs: list[Pair]) -> None:
    answered = [pair for pair in pairs if len(pair.facts) == 1 and pair.facts[0]["kind"] != "absent"]
    hidden = [pair for pair in answered if pair.withheld]
    assert {name for pair in hidden for name in pair.withheld} >= ALL - {"ws10"}
    windows = dict(WINDOWS)
    for pair in hidden:
        fact = Fact.from_dict(pair.facts[0])
        shown = {other.key: other for other in extract(withhold(windows[pair.sample], pair.withheld))}
        whole = {other.key: other for other in extract(windows[pair.sample])}
        assert spoken(shown[fact.key]) == spoken(whole[fact.key])  # sums over masked cells round otherwise
        assert set(whole) - set(shown)  # something is missing


def _never_held(pair: Pair) -> bool:
    return pair.facts[0]["kind"] == "absent" and not {*sources(pair.facts[0]["variable"])} & {*pair.withheld}


def test_all_texts_of_a_window_withhold_the_same(pairs: list[Pair]) -> None:
    """So that a window is encoded once for all its texts."""
    assert len({(pair.sample, pair.withheld) for pair in pairs}) == len(WINDOWS)


@pytest.mark.parametrize(
    ("bulletins", "abstentions"),
    [
        pytest.param(0.0, 0.08, marks=pytest.mark.slow),
        (0.2, 0.3),
        pytest.param(0.5, 0.5, marks=pytest.mark.slow),
        (0.0, 1.0),
        pytest.param(1.0, 0.0, marks=pytest.mark.slow),
    ],
)
def test_as_many_of_each_form_as_asked_for(bulletins: float, abstentions: float) -> None:
    windows = [(number, WINDOWS[number % 40][1]) for number in range(400)]
    found = list(describe(windows, questions_per_window=5, bulletins=bulletins, abstentions=abstentions))
    assert len(found) == 5 * len(windows)
    absent = sum(pair.facts[0]["kind"] == "absent" for pair in found) / len(found)
    several = sum(len(pair.facts) > 1 for pair in found) / len(found)
    assert absent == pytest.approx(abstentions, abs=0.03)
    assert several == pytest.approx(bulletins, abs=0.03)
    # Where a variable is withheld, half of the questions are about what is left, if there is room for them.
    lacking = [
        pair
        for pair in found
        if pair.withheld not in ((), windows[pair.sample][1].variables)
        and len(pair.facts) == 1
        and not _never_held(pair)
    ]
    about_it = sum(pair.facts[0]["kind"] == "absent" for pair in lacking) / max(len(lacking), 1)
    room = bulletins + abstentions < 1
    assert about_it == pytest.approx(0.5 if room else float(abstentions > 0), abs=0.1)


def test_a_question_without_answer_is_asked_as_others_are(pairs: list[Pair]) -> None:
    """No kind of question gives away that there is no answer."""
    kinds = {True: set(), False: set()}
    for pair in pairs:
        key = asked(pair.prompt)
        if key is not None:
            kinds[pair.facts[0]["kind"] == "absent"].add(key[0])
    assert kinds[True] <= kinds[False]


def test_many_names_are_said_not_to_be_there_and_some_are_left_for_the_test() -> None:
    many = [(number, _window(number % 40)) for number in range(800)]
    named = {
        pair.facts[0]["variable"]
        for pair in describe(many, kinds=["mean"], questions_per_window=4, abstentions=0.3)
        if pair.facts[0]["kind"] == "absent" and not pair.withheld
    }
    assert named <= FACT_KINDS["absent"].rules.keys() - ALL
    assert len(named) > 100
    assert named.isdisjoint(UNTRAINED_NAMES)
    assert UNTRAINED_NAMES.keys() < UNSEEN_NAMES.keys()


def test_what_is_there_is_not_said_to_be_missing_under_another_name() -> None:
    """Sea ice that the fields hold under its canonical name, and no kind of fact speaks of."""
    window = random_window(np.random.default_rng(0))
    ice = replace(
        window,
        variables=(*window.variables, "siconc"),
        fields=np.concatenate([window.fields, np.full_like(window.fields[:, :1], 0.3)], 1),
    )
    for held, expected in ((window, True), (ice, False)):
        texts = describe(
            [(n, held) for n in range(1500)], kinds=["mean"], questions_per_window=1, abstentions=1.0
        )
        assert any(pair.facts[0]["variable"] == "siconc" for pair in texts) == expected


def test_no_text_names_a_place_or_time(pairs: list[Pair]) -> None:
    for pair in pairs:
        assert "2026" not in pair.text
        assert "2026" not in pair.prompt


def test_a_pure_function_of_seed_and_sample(pairs: list[Pair]) -> None:
    arguments = {"questions_per_window": 10, "bulletins": 0.2, "abstentions": 0.3}
    backwards = list(describe(WINDOWS[::-1], **arguments))
    assert sorted(map(repr, backwards)) == sorted(map(repr, pairs))
    assert list(describe(WINDOWS[7:9], **arguments)) == pairs[70:90]
    assert list(describe(WINDOWS, seed=1, **arguments)) != pairs


def test_kinds_are_asked_alike_and_as_often_as_named() -> None:
    kinds = ["mean/t2m", "mean/msl", "direction", "direction"]
    found = Counter(
        (pair.facts[0]["kind"], pair.facts[0]["variable"])
        for pair in describe(WINDOWS * 10, kinds=kinds, questions_per_window=1, abstentions=0)
    )
    assert set(found) == {("mean", "t2m"), ("mean", "msl"), ("direction", "wd10")}
    one = list(describe(WINDOWS[:12], kinds=kinds, questions_per_window=3, abstentions=0))
    for start in range(0, 36, 3):  # no fact twice as long as there are others
        assert len({pair.facts[0]["variable"] for pair in one[start : start + 3]}) == 3
    many = Counter(
        pair.facts[0]["kind"]
        for pair in describe(
            [(number, WINDOWS[0][1]) for number in range(400)],
            kinds=kinds,
            questions_per_window=1,
            abstentions=0,
        )
    )
    assert many["direction"] / 400 == pytest.approx(0.5, abs=0.08)


def test_a_window_without_values_has_only_absences() -> None:
    empty = replace(WINDOWS[0][1], fields=np.full_like(WINDOWS[0][1].fields, np.nan))
    found = list(describe([(0, empty)], questions_per_window=20, abstentions=1.0))
    assert len(found) == 20
    assert {pair.facts[0]["kind"] for pair in found} == {"absent"}
    assert list(describe([(0, empty)], abstentions=0)) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"bulletins": 1.5}, "bulletins"),
        ({"bulletins": 0.6, "abstentions": 0.5}, "abstentions"),
        ({"questions_per_window": 0}, "questions_per_window"),
        ({"facts_per_bulletin": (3, 2)}, "facts_per_bulletin"),
        ({"kinds": ["mood"]}, "mood"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        describe([], **arguments)


def test_pairs_survive_a_file(pairs: list[Pair], tmp_path: object) -> None:
    for suffix in ("jsonl", "csv", "parquet"):
        path = tmp_path / f"pairs.{suffix}"
        write_pairs(pairs, path)
        assert read_pairs(path) == pairs


def test_withholding_copies() -> None:
    window = WINDOWS[0][1]
    before = window.fields.copy()
    hidden = withhold(window, ("msl", "sst"))
    assert hidden.variables == window.variables
    assert np.isnan(hidden.field("msl")).all()
    assert np.array_equal(window.fields, before)
    assert withhold(window, ()) is window


GRIDS = [
    (np.linspace(-90, 90, 181), np.arange(360.0)),
    (np.arange(-89.5, 90, 1.0), np.arange(0.5, 360, 1.0)),
    (np.linspace(-90, 90, 361), np.arange(576) * 0.625),
    (np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(48)[0])), np.arange(96) * 3.75),
]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(range(len(GRIDS))),
    st.floats(-90, 90),
    st.floats(0, 360),
    st.floats(8, 60),
    st.floats(8, 60),
)
def test_the_box_of_a_window_selects_it_again(
    grid: int, latitude: float, longitude: float, height: float, width: float
) -> None:
    rows, columns = GRIDS[grid]
    dataset = xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), np.zeros((1, len(rows), len(columns)), np.float32))},
        {"time": np.array(["2026-03-25"], "datetime64[ns]"), "latitude": rows, "longitude": columns},
    )
    window = select_window(dataset, time="2026-03-25", box=Box(latitude, longitude, height, width))
    again = select_window(dataset, time="2026-03-25", box=window_box(window))
    assert np.array_equal(again.latitude, window.latitude)
    assert np.array_equal(again.longitude, window.longitude)


def test_the_box_of_the_whole_globe() -> None:
    rows, columns = GRIDS[0]
    window = replace(
        WINDOWS[0][1],
        fields=np.zeros((2, 5, len(rows), len(columns)), np.float32),
        latitude=rows,
        longitude=columns,
    )
    assert window_box(window) == Box(0.0, 179.5, 180.0, 360.0)
