"""The verdict: what passes, what fails, what cannot be told, and what was not measured."""

from __future__ import annotations

import pytest

from climafuse.evaluation import Difference, verdict
from climafuse.evaluation.verdict import CHECKS, FEWEST, MARGIN, Reading

ALL = {check.name: Difference(0.5, 96, (0.4, 0.6), 0.001) for check in CHECKS}


def test_all_differences_beyond_zero():
    found = verdict(ALL)
    assert found["grounded"] is True
    assert found["words"] == "grounded"
    assert all(row["passed"] for row in found["checks"])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: " - ".join(check.name))
@pytest.mark.parametrize(
    "difference", [Difference(0.02, 96, (-0.03, 0.07), 0.4), Difference(-0.1, 96, (-0.3, 0.2), 0.5)]
)
def test_one_that_is_not_is_enough(check, difference):
    found = verdict({**ALL, check.name: difference})
    assert found["grounded"] is False
    failed = [row for row in found["checks"] if not row["passed"]]
    assert [row["name"] for row in failed] == [" - ".join(check.name)]
    assert failed[0]["meaning"] == check.failure


def test_too_few_samples_tell_nothing():
    """Neither that there is a difference nor that there is none: the oracle against a guesser on easy questions."""
    found = verdict({**ALL, CHECKS[0].name: Difference(0.056, 96, (-0.009, 0.12), 0.09)})
    assert found["grounded"] is None
    assert found["checks"][0]["passed"] is None
    assert "too few samples" in found["checks"][0]["meaning"]
    assert "cannot be told" in found["words"]
    failed = verdict(
        {CHECKS[0].name: Difference(0.2, 96, (-0.1, 0.5), 0.2), CHECKS[1].name: Difference(-0.1, 96)}
    )
    assert failed["grounded"] is False  # one failure is enough, whatever else cannot be told


@pytest.mark.parametrize(
    ("value", "num_windows", "grounded"),
    [
        (MARGIN, FEWEST, True),
        (MARGIN - 1e-9, FEWEST, None),
        (1.0, FEWEST - 1, None),
        (0.0, FEWEST - 1, None),
        (-0.5, FEWEST - 1, None),
        (0.0, FEWEST, False),
        (-0.5, FEWEST, False),
    ],
)
def test_without_an_interval_the_difference_must_be_large(value, num_windows, grounded):
    found = verdict({CHECKS[0].name: Difference(value, num_windows)})
    assert found["grounded"] is grounded
    assert found["checks"][0]["limit"] == MARGIN


def test_what_was_not_measured_neither_passes_nor_fails_and_is_named():
    found = verdict({**ALL, CHECKS[-1].name: Difference(None)})
    assert found["grounded"] is True
    assert found["words"] == "grounded (not measured: true - place_only)"
    assert [row["passed"] for row in found["checks"]] == [*[True] * (len(CHECKS) - 1), None]


def test_nothing_measured_is_nothing_shown():
    assert verdict({})["grounded"] is None


def _reading(shown, shuffled, *, num_questions=100, num_windows=96, width=None):
    value = shown - shuffled
    interval = None if width is None else (value - width, value + width)
    return Reading(num_questions, shown, shuffled, Difference(value, num_windows, interval))


@pytest.mark.parametrize("what", ["variables", "kinds"])
def test_what_is_remembered_is_not_hidden_by_what_is_read(what):
    readings = {
        "t2m": _reading(0.97, 0.02, width=0.05),
        "msl": _reading(0.45, 0.4, width=0.1),
        "tp": _reading(0.0, 0.9, num_questions=FEWEST - 1),  # too few to tell
    }
    found = verdict(ALL, **{what: readings})
    assert found["grounded"] is False
    assert found["words"] == "not grounded (not read: msl; too few questions: tp)"
    assert {name: row["read"] for name, row in found[what].items()} == {"msl": False, "t2m": True, "tp": None}


@pytest.mark.parametrize(
    ("reading", "read"),
    [
        (_reading(1.0, 0.0), True),
        (_reading(0.5, 0.0), True),  # no interval: half of what a reader has
        (_reading(0.49, 0.0), None),
        (_reading(0.3, 0.3), False),
        (_reading(0.0, 0.0), False),
        (_reading(0.3, 0.1, width=0.19), True),
        (_reading(0.3, 0.1, width=0.21), False),  # cannot be half
        (_reading(0.4, 0.1, width=0.31), None),
    ],
)
def test_how_much_is_enough_to_be_read(reading, read):
    found = verdict(ALL, variables={"t2m": reading})
    assert found["variables"]["t2m"]["read"] is read
    assert found["grounded"] is read
    assert ("not clear whether read: t2m" in found["words"]) == (read is None)


@pytest.mark.parametrize(
    "few", [{"num_windows": FEWEST - 1}, {"num_questions": FEWEST - 1}], ids=["windows", "questions"]
)
def test_few_tell_nothing_of_a_variable_however_many_there_are_of_the_rest(few):
    assert verdict(ALL, variables={"t2m": _reading(0.4, 0.4)})["grounded"] is False
    found = verdict(ALL, variables={"t2m": _reading(0.4, 0.4, **few), "msl": _reading(0.9, 0.0)})
    assert found["variables"]["t2m"]["read"] is None
    assert found["grounded"] is True
    assert found["words"] == "grounded (too few questions: t2m)"


@pytest.mark.parametrize("what", ["variables", "kinds"])
@pytest.mark.parametrize(
    ("readings", "grounded"),
    [
        ({}, None),
        ({"t2m": Reading(0, None, None, Difference(None))}, None),  # the swap changed no answer
        ({"t2m": _reading(1.0, 0.0, num_questions=FEWEST - 1)}, None),
        ({"t2m": _reading(1.0, 0.0, num_questions=12), "msl": _reading(1.0, 0.0, num_windows=9)}, None),  # 12 of 112
        ({"t2m": _reading(1.0, 0.0), "msl": _reading(1.0, 0.0, num_windows=9)}, True),  # 100 of 200
        ({"t2m": _reading(0.2, 0.2, num_questions=12), "msl": _reading(1.0, 0.0, num_windows=9)}, False),
    ],
)  # fmt: skip
def test_a_verdict_rests_on_half_of_what_could_tell(readings, grounded, what):
    found = verdict(ALL, **{what: readings})
    assert found["grounded"] is grounded
    assert (grounded is None) == (
        found["words"].partition(" (")[0] == "cannot be told: too few questions whose answer a swap changes"
    )


TIE, WORSE = Difference(0.01, 96, (-0.01, 0.03), 0.4), Difference(-0.05, 96, (-0.09, -0.01), 0.01)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: " - ".join(check.name))
@pytest.mark.parametrize(
    ("best_guess", "difference", "passed"),
    [
        (0.89, TIE, False),
        (0.91, TIE, None),
        (0.91, Difference(0.0, 96), None),
        (0.91, WORSE, False),
        (0.91, Difference(-MARGIN, 96), False),
        (0.91, ALL[CHECKS[0].name], True),
    ],
)
def test_where_guesses_are_right_nobody_can_be_better(check, best_guess, difference, passed):
    """But a model whose words are the same under swapped values does not read, however easy the questions are."""
    found = verdict({**ALL, check.name: difference}, best_guess=best_guess)
    row = next(row for row in found["checks"] if row["name"] == " - ".join(check.name))
    expected = False if passed is None and "shuffled" in check.name else passed
    assert row["passed"] is expected
    assert found["grounded"] is expected
    if expected is None:
        assert found["words"] == "cannot be told: too easy questions"
        assert row["meaning"] == f"the questions are too easy to tell whether {check.meaning}"
