"""Scores by hand, and chunked equals whole."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.facts import Fact, Statistic, metrics, score, spoken, statistic
from climafuse.facts.kinds import FACT_KINDS, agrees
from tests.facts.examples import facts

TEMPERATURE = Fact("mean", "t2m", 8.4)
PRESSURE = Fact("mean", "msl", 1013.2)
DIRECTION = Fact("direction", "wd10", 250.0)
PLACE = Fact("maximum_position", "t2m", (42.0, 343.0), cell=(1.0, 1.0))
REFERENCE = [TEMPERATURE, PRESSURE, DIRECTION, PLACE]


def test_by_hand() -> None:
    stated = [
        Fact("mean", "t2m", 8.0),  # right, 0.4 off
        Fact("mean", "msl", 1010.0),  # wrong, 3.2 off
        Fact("direction", "wd10", "west"),  # right: 20 degrees off
        Fact("mean", "tp", 0.3),  # the reference says nothing of it
    ]
    result = score(stated, REFERENCE)
    assert result.precision == 2 / 4
    assert result.recall == 2 / 4
    assert result.f1 == 0.5
    assert result.wrong_rate == 1 / 4
    assert result.invented_rate == 1 / 4
    assert result.errors == {
        "direction/wd10": pytest.approx(20.0),
        "mean/msl": pytest.approx(3.2),
        "mean/t2m": pytest.approx(0.4),
    }
    assert (result.num_stated, result.num_referenced) == (4, 4)
    assert json.loads(json.dumps(result.to_dict()))["f1"] == 0.5


def test_precision_and_recall_are_not_the_same() -> None:
    result = score([Fact("mean", "t2m", 8.0)], REFERENCE)
    assert (result.precision, result.recall) == (1.0, 0.25)
    assert result.f1 == pytest.approx(2 * 1 * 0.25 / 1.25)


def test_repeating_counts_once_and_contradicting_is_wrong() -> None:
    right, other = Fact("mean", "t2m", 8.0), Fact("mean", "t2m", 9.0)  # either alone is within 1 K
    assert score([right, right], [TEMPERATURE]).num_stated == 1
    assert score([right, right], [TEMPERATURE]).f1 == 1.0
    both = score([right, other], [TEMPERATURE])
    assert (both.precision, both.wrong_rate, both.recall, both.f1) == (0.0, 1.0, 0.0, 0.0)
    assert both.errors == {}  # which of the two would it be?


def test_facts_beyond_the_question_are_judged_by_the_support() -> None:
    stated = [Fact("mean", "t2m", 8.0), Fact("mean", "msl", 1013.0), Fact("direction", "wd10", "east")]
    alone = score(stated, [TEMPERATURE])
    assert (alone.precision, alone.invented_rate, alone.recall) == (1 / 3, 2 / 3, 1.0)
    judged = score(stated, [TEMPERATURE], support=REFERENCE)
    assert (judged.precision, judged.invented_rate, judged.wrong_rate) == (2 / 3, 0.0, 1 / 3)
    assert (judged.recall, judged.num_referenced) == (1.0, 1)
    # Right about something that was not asked recalls nothing.
    assert score(stated[1:2], [TEMPERATURE], support=REFERENCE).recall == 0.0


def test_stating_what_is_absent_is_inventing() -> None:
    absent = Fact("absent", "t2m", "absent")
    assert score([absent], [absent]).f1 == 1.0
    invented = score([Fact("mean", "t2m", 8.0)], [absent])
    assert (invented.invented_rate, invented.recall) == (1.0, 0.0)
    denied = statistic([absent], [TEMPERATURE])
    assert denied.only(kind="absent").total().unsupported == 1


def test_silence() -> None:
    silent = score([], REFERENCE)
    assert math.isnan(silent.precision)
    assert math.isnan(silent.invented_rate)
    assert (silent.recall, silent.f1) == (0.0, 0.0)
    nothing = score([], [])
    assert math.isnan(nothing.f1)
    assert nothing.to_dict()["f1"] is None


def test_the_part_about_one_variable() -> None:
    whole = statistic([Fact("mean", "t2m", 8.0), Fact("mean", "msl", 990.0)], REFERENCE)
    assert metrics(whole.only(kind="mean", variable="t2m")).f1 == 1.0
    assert metrics(whole.only(kind="mean")).f1 == 0.5
    assert metrics(whole.only(variable="t2m")).recall == 0.5  # the place of the maximum was not stated


examples = st.lists(
    st.tuples(st.lists(facts().map(spoken), max_size=5), st.lists(facts(), max_size=5)),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=60)
@given(examples, st.integers(1, 5))
def test_chunked_equals_whole(pairs: list[tuple[list[Fact], list[Fact]]], size: int) -> None:
    parts = [statistic(stated, truth) for stated, truth in pairs]
    whole = metrics(sum(parts, Statistic()))
    chunks = [sum(parts[start : start + size], Statistic()) for start in range(0, len(parts), size)]
    chunked = metrics(sum(reversed(chunks), Statistic()))
    for name in ("precision", "recall", "f1", "wrong_rate", "invented_rate"):
        assert getattr(chunked, name) == pytest.approx(getattr(whole, name), nan_ok=True)
    assert chunked.errors == pytest.approx(whole.errors)


@settings(deadline=None, max_examples=100)
@given(st.lists(facts(), min_size=1, max_size=8), st.lists(facts().map(spoken), max_size=8))
def test_invariances(truth: list[Fact], stated: list[Fact]) -> None:
    truth = list({fact.key: fact for fact in truth}.values())
    assert score(map(spoken, truth), truth).f1 == 1.0  # an oracle's words are all right
    result = score(stated, truth)
    assert score(stated[::-1] + stated, truth) == result
    total = statistic(stated, truth).total()
    assert total.stated == total.right + total.wrong + total.unsupported == len({fact.key for fact in stated})
    assert total.referenced == len(truth)
    # Counted in another way: keys stated once, and near enough.
    keys = [fact.key for fact in dict.fromkeys(stated)]
    right = [f for f in dict.fromkeys(stated) if keys.count(f.key) == 1 and any(agrees(f, t) for t in truth)]
    assert total.right == total.recalled == len(right)


def test_errors_have_the_unit_of_the_table() -> None:
    errors = score([Fact("maximum_position", "t2m", (43.0, 343.0))], [PLACE]).errors
    assert errors["maximum_position/t2m"] == pytest.approx(111.19, abs=0.01)  # one degree of latitude
    assert FACT_KINDS["maximum_position"].rules["t2m"].unit == "km"
