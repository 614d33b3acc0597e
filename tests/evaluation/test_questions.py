"""Questions: which are asked, and what is true."""

from __future__ import annotations

import numpy as np
import pytest

from climafuse.data.pairs import Pair
from climafuse.evaluation import Question, questions_of, swap_values, truths
from climafuse.facts import Fact
from tests.facts.windows import KELVIN, window

TIME = np.datetime64("2026-03-25T12:00:00")


def _pair(prompt, *facts, withheld=()):
    return Pair((TIME, TIME), None, prompt, "Words.", tuple(f.to_dict() for f in facts), 0, withheld)


def test_only_pairs_that_state_one_fact_are_questions():
    mean, low = Fact("mean", "t2m", 1.0), Fact("minimum", "t2m", 0.0)
    absent = Fact("absent", "msl", "absent")
    groups = [
        [_pair("a?", mean), _pair("bulletin", mean, low)],
        [_pair("no facts")],
        [
            _pair("b?", absent, withheld=("msl",)),
            _pair("c?", Fact("event", "t2m", "no", (("event", "heat"),))),
        ],
    ]
    assert questions_of(groups) == [
        Question(0, "a?", ("mean", "t2m", ()), answer="Words."),
        Question(2, "b?", ("absent", "msl", ()), ("msl",), answer="Words."),
        Question(2, "c?", ("event", "t2m", (("event", "heat"),)), answer="Words."),
    ]


def test_truths_of_a_hybrid_by_hand():
    """Values of the south at the place of the north: weights, positions and halves are those of the north."""
    north = window({"t2m": KELVIN + np.array([[1, 1], [1, 1]])}, [0, 60], [10, 11])
    south = window({"t2m": KELVIN + np.array([[1, 1], [20, 24]])}, [-60, 0], [200, 201])
    (hybrid, _), donor = swap_values([north, south], seed=0)
    assert donor == [1, 0]
    keys = [
        ("mean", "t2m", ()),
        ("maximum", "t2m", ()),
        ("maximum_position", "t2m", ()),
        ("comparison", "t2m", (("axis", "north-south"),)),
        ("event", "t2m", (("event", "freezing"),)),
        ("mean", "msl", ()),
        ("absent", "msl", ()),
    ]
    questions = [Question(0, "?", key) for key in keys]
    facts = truths([hybrid], questions)
    # cos 0° = 1 for the row of 1 °C, cos 60° = 1/2 for the row of 20 and 24: (1 + 1 + 10 + 12) / 3.
    assert facts[0].value == pytest.approx(24 / 3, abs=1e-4)
    # At its own place the same values had the weights 1/2 and 1: (0.5 + 0.5 + 20 + 24) / 3.
    assert truths([south], questions[:1])[0].value == pytest.approx(45 / 3, abs=1e-4)
    assert facts[1].value == pytest.approx(24, abs=1e-4)
    assert facts[2].value == (60.0, 11.0)
    assert facts[3].value == "north"
    assert facts[4].value == "no"
    assert facts[5] is None  # the fields hold no pressure
    assert facts[6] == Fact("absent", "msl", "absent")


def test_of_what_is_not_shown_nothing_is_true():
    questions = [Question(0, "?", ("mean", "t2m", ())), Question(0, "?", ("absent", "t2m", ()))]
    assert truths([None], questions) == [None, Fact("absent", "t2m", "absent")]
