"""Questions: which are asked, what may be seen, what is true, and whose values are shown."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.data.pairs import Pair
from climafuse.evaluation import Question, questions_of, shown, swap_values, truths
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
        Question(0, "a?", ("mean", "t2m", ())),
        Question(2, "b?", ("absent", "msl", ()), ("msl",)),
        Question(2, "c?", ("event", "t2m", (("event", "heat"),))),
    ]


def test_what_is_withheld_is_not_shown_and_nothing_else_changes():
    fields = {"t2m": np.full((2, 2), 280.0), "msl": np.full((2, 2), 1e5)}
    windows = [window(fields, [0, 1], [5, 6]), window(fields, [2, 3], [5, 6])]
    questions = [
        Question(1, "a", ("mean", "t2m", ())),
        Question(1, "b", ("absent", "msl", ()), ("msl",)),
        Question(0, "c", ("mean", "msl", ())),
        Question(1, "d", ("mean", "msl", ())),
    ]
    views, index = shown(windows, questions)
    assert index == [0, 1, 2, 0]  # each view once
    assert views[0] is windows[1]
    assert views[2] is windows[0]
    assert views[1].available() == ("t2m",)
    assert np.isnan(views[1].field("msl")).all()
    assert windows[1].available() == ("t2m", "msl")  # the window itself is as it was


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([(1, 2, 2), (1, 2, 3), (2, 2, 2)]), min_size=1, max_size=12), st.integers(0, 99)
)
def test_swapping_gives_everyone_the_values_of_another_of_its_shape(shapes, seed):
    windows = [
        window(
            {"t2m": np.full(shape, number)},
            number + np.arange(shape[1]),
            np.arange(shape[2]),
            [f"2026-03-{1 + number:02}T0{t}:00" for t in range(shape[0])],
        )
        for number, shape in enumerate(shapes)
    ]
    swapped, donor = swap_values(windows, seed=seed)
    alone = {shape for shape, count in Counter(shapes).items() if count == 1}
    for number, (before, after, source) in enumerate(zip(windows, swapped, donor, strict=True)):
        assert after.variables == before.variables
        for name in ("time", "latitude", "longitude"):
            assert np.array_equal(getattr(after, name), getattr(before, name))
        if shapes[number] in alone:
            assert source is None
            assert after is before
        else:
            assert source != number
            assert shapes[source] == shapes[number]
            assert (after.fields == source).all()
    given_away = [source for source in donor if source is not None]
    assert len(set(given_away)) == len(given_away)  # nobody's values are shown twice


def test_the_swap_depends_on_the_seed_only():
    windows = [window({"t2m": np.full((2, 2), n)}, [0, 1], [0, 1]) for n in range(8)]
    assert swap_values(windows, seed=3)[1] == swap_values(windows, seed=3)[1]
    assert len({tuple(swap_values(windows, seed=seed)[1]) for seed in range(5)}) > 1


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
