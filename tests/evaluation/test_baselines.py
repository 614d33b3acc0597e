"""Guessers, by hand on a constructed store: they know place, calendar and training times, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from climafuse.data.splits import Splits
from climafuse.data.window import Box
from climafuse.evaluation import GUESSERS, Question, baselines, remember
from climafuse.evaluation import guesses as recall
from tests.evaluation.stores import changed, make_store, random_store
from tests.facts.windows import KELVIN

BOX = Box(2.5, 22.5, 5, 5)  # rows 0 to 4, columns 20 to 24


def guesses(store, windows, questions, *, history):
    return recall(remember(store, windows, questions, history=history), questions)


def _guess(store, key, *, history=1, box=BOX, step=11):
    questions = [Question(0, "?", key)]
    answers = guesses(store, [store.window(step, box, history)], questions, history=history)
    return {name: None if answers[name][0] is None else answers[name][0].value for name in GUESSERS}


def _steps(*train):
    """Values at the six training steps; elsewhere something else."""
    return np.array([*train, *[99.0] * 6])


def test_numbers():
    store = make_store({"t2m": KELVIN + _steps(0, 1, 1, 3, 9, 12)})
    # Mean 26 / 6 = 4.33; median of 0 1 1 3 9 12 is 2; the last is 12. All as spoken, without decimals.
    assert _guess(store, ("mean", "t2m", ())) == {"climatology": 4.0, "prior": 2.0, "last_training": 12.0}


def test_the_training_times_with_their_whole_history():
    store = make_store({"t2m": KELVIN + _steps(0, 1, 3, 6, 10, 15)})
    # Changes over two steps: 1 2 3 4 5, their mean and median 3, the last 5.
    assert _guess(store, ("change", "t2m", ()), history=2) == {
        "climatology": 3.0,
        "prior": 3.0,
        "last_training": 5.0,
    }
    # Valid times are the last five: mean 35 / 5 = 7, median 6.
    assert _guess(store, ("mean", "t2m", ()), history=2) == {
        "climatology": 7.0,
        "prior": 6.0,
        "last_training": 15.0,
    }


def test_directions():
    # West wind at 5 m/s on three of six days, south wind on two, calm on one.
    store = make_store({"u10": _steps(5, 5, 5, 0, 0, 0), "v10": _steps(0, 0, 0, 5, 0, 5)})
    # Mean vector (2.5, 1.67): from 180° + 56.3° = 236.3°, southwest.
    assert _guess(store, ("direction", "wd10", ())) == {
        "climatology": "southwest",
        "prior": "west",
        "last_training": "south",
    }
    # Mean of the speeds 5 5 5 5 0 5 is 4.17, of the mean vector's cells √(2.5² + 1.67²) = 3.0.
    assert _guess(store, ("mean", "ws10", ())) == {"climatology": 3.0, "prior": 5.0, "last_training": 5.0}


def test_classes():
    # Frost on four of six days; the mean is 0.67 °C, above zero.
    store = make_store({"t2m": KELVIN + _steps(-1, -1, -1, 8, 1, -2)})
    assert _guess(store, ("event", "t2m", (("event", "freezing"),))) == {
        "climatology": "no",
        "prior": "yes",
        "last_training": "yes",
    }


def test_a_fact_that_the_last_training_time_does_not_tell():
    """An even field has no warmest place; on other days it had one."""
    fields = np.full((12, 10, 12), KELVIN)
    fields[0, 1, 2] += 5
    fields[1, 3, 1] += 7
    fields[2, 3, 1] += 6
    store = make_store({"t2m": fields})
    assert _guess(store, ("maximum_position", "t2m", ())) == {
        "climatology": (3.0, 21.0),  # 13/6 K warmer on average, (1, 22) only 5/6
        "prior": (3.0, 21.0),
        "last_training": None,
    }


def test_a_missing_cell_is_left_out_of_the_mean_only_where_it_is_missing():
    fields = np.broadcast_to((KELVIN + _steps(0, 6, 6, 6, 6, 6))[:, None, None], (12, 10, 12)).copy()
    fields[0, 2, 2] = np.nan
    store = make_store({"t2m": fields})
    # That cell: 6 from five days; every other 30 / 6 = 5.
    assert _guess(store, ("maximum", "t2m", ()))["climatology"] == 6.0
    assert _guess(store, ("minimum", "t2m", ()))["climatology"] == 5.0


def test_what_was_never_there_is_not_guessed():
    store = make_store({"t2m": KELVIN + _steps(0, 1, 2, 3, 4, 5)})
    assert _guess(store, ("mean", "msl", ())) == dict.fromkeys(GUESSERS)


KEYS = [
    ("mean", "t2m", ()),
    ("maximum_position", "msl", ()),
    ("direction", "wd10", ()),
    ("change", "tp", ()),
    ("tendency", "t2m", ()),
    ("event", "tp", (("event", "wet"),)),
]


@pytest.mark.parametrize("steps", [range(6, 12), range(6)], ids=["other times", "training times"])
def test_only_training_times_are_looked_at(steps):
    store = random_store()
    questions = [Question(n % 2, "?", key) for n, key in enumerate(KEYS)]
    windows = [store.window(11, BOX, 2), store.window(8, Box(7, 28, 5, 5), 2)]
    other = changed(store, steps)
    before = guesses(store, windows, questions, history=2)
    after = guesses(other, windows, questions, history=2)
    assert (before == after) == (steps[0] == 6)


def _hourly(values, hours):
    """A store of as many hours from 2026-03-25, the last 24 of them for testing, with the value of each."""
    store = make_store(
        {"t2m": KELVIN + np.asarray(values, float)},
        splits=Splits(np.arange(hours - 48), [], np.arange(hours - 24, hours)),
    )
    return dataclasses.replace(store, time=store.time[0] + np.arange(hours) * np.timedelta64(1, "h"))


def test_the_time_of_day_is_known_where_there_are_enough_days(monkeypatch):
    """It is as many degrees as the hour, but 50 on the last day. Three hours of each of ten days are like one hour."""
    hours = 24 * 6
    store = _hourly(np.where(np.arange(hours) < hours - 48, np.arange(hours) % 24, 50), hours)
    asked_at = hours - 24 + 7  # seven o'clock of the last day; training has four days of 6, 7 and 8 o'clock
    assert _guess(store, ("mean", "t2m", ()), step=asked_at)["prior"] == 7.0
    assert _guess(store, ("maximum", "t2m", ()), step=asked_at)["climatology"] == 7.0
    assert _guess(store, ("mean", "t2m", ()), step=asked_at)["last_training"] == 23.0
    monkeypatch.setattr(baselines, "ENOUGH", 13)  # one more than there are
    assert _guess(store, ("mean", "t2m", ()), step=asked_at)["prior"] == 12.0  # median of 0 to 23 as spoken


@pytest.mark.parametrize(("first", "answer"), [(0, 10.0), (182, -10.0)])
def test_the_season_is_known_where_training_is_longer(first, answer):
    """Three years of days: 10 °C from January to June, -10 °C in the other half; asked about the fourth year."""
    days = 4 * 365
    year = np.arange(days) % 365
    store = make_store(
        {"t2m": KELVIN + np.where(year < 182, 10.0, -10.0)},
        splits=Splits(np.arange(3 * 365), [], np.arange(3 * 365 + 20, days)),
    )
    store = dataclasses.replace(
        store, time=np.datetime64("2001-01-01") + np.arange(days).astype("timedelta64[D]")
    )
    store = dataclasses.replace(store, time=store.time.astype("datetime64[ns]"))
    found = _guess(store, ("mean", "t2m", ()), step=3 * 365 + first + 60)
    assert found == {"climatology": answer, "prior": answer, "last_training": -10.0}


@pytest.mark.parametrize(("days_apart", "remembered"), [(15, True), (16, False)])
def test_a_season_reaches_fifteen_days_to_both_sides(days_apart, remembered):
    """Four degrees all year, ten on ten days before and ten after, of which the nearest ones are so far away."""
    days = np.arange(3 * 365)
    middle = 365 + 180
    apart = np.abs(days - middle)
    # A season is remembered where there are ten of its days: no others of training are near.
    training = np.flatnonzero((days < 100) | ((apart >= days_apart - 4) & (apart <= days_apart)))
    warm = (apart >= days_apart - 4) & (apart <= days_apart)
    store = make_store(
        {"t2m": KELVIN + np.where(warm, 10.0, 4.0)},
        splits=Splits(training, [], np.array([middle])),
    )
    time = (np.datetime64("2001-01-01") + days.astype("timedelta64[D]")).astype("datetime64[ns]")
    store = dataclasses.replace(store, time=time)
    assert len(training) == 110
    # Of the season alone 10; of all of training (100 × 4 + 10 × 10) / 110 = 4.5, as spoken 5.
    expected = 10.0 if remembered else 5.0
    assert _guess(store, ("mean", "t2m", ()), step=middle)["climatology"] == expected


def test_a_season_that_training_does_not_know_is_guessed_by_all_of_it():
    days = 365
    store = make_store(
        {"t2m": KELVIN + np.where(np.arange(days) < 50, 10.0, 4.0)},
        splits=Splits(np.arange(100), [], np.arange(200, days)),
    )
    # 50 days of 10 and 50 of 4 °C; none of them within 15 days of the day asked about.
    assert _guess(store, ("mean", "t2m", ()), step=250)["climatology"] == 7.0


def test_of_the_windows_only_the_place_is_looked_at():
    store = random_store()
    questions = [Question(0, "?", key) for key in KEYS]
    own = store.window(11, BOX, 2)
    blank = dataclasses.replace(own, fields=np.zeros_like(own.fields), time=own.time - np.timedelta64(1, "D"))
    elsewhere = store.window(11, Box(7, 28, 5, 5), 2)
    assert guesses(store, [own], questions, history=2) == guesses(store, [blank], questions, history=2)
    assert guesses(store, [own], questions, history=2) != guesses(store, [elsewhere], questions, history=2)


def test_of_many_training_times_some_at_even_distances_are_looked_at(monkeypatch):
    monkeypatch.setattr(baselines, "TIMES", 3)
    store = make_store({"t2m": KELVIN + _steps(0, 90, 4, 91, 92, 11)})
    # Of steps 0 to 5 the first, the one at 2.5, which rounds to 2, and the last: 0 4 11, mean 5, median 4.
    assert _guess(store, ("mean", "t2m", ())) == {"climatology": 5.0, "prior": 4.0, "last_training": 11.0}
