"""What of a run is asked about. Oracle: lists made by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cftime
import numpy as np
import pytest

from climafuse.errors import CheckpointError, ConfigurationError
from climafuse.evaluation.checkpoint import _spread, _unseen, record_name
from climafuse.evaluation.questions import Question

# Four windows with three, one, no and two questions.
QUESTIONS = [
    Question(window, prompt, ("mean", "t2m", ()))
    for window, prompt in ((0, "a"), (0, "b"), (0, "c"), (1, "d"), (3, "e"), (3, "f"))
]
WINDOWS = [SimpleNamespace(name=name) for name in "wxyz"]


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (None, ["wa", "wb", "wc", "xd", "ze", "zf"]),
        (9, ["wa", "wb", "wc", "xd", "ze", "zf"]),
        (5, ["wa", "wb", "xd", "ze", "zf"]),
        (4, ["wa", "wb", "xd", "ze"]),
        (3, ["wa", "xd", "ze"]),
        (2, ["wa", "xd"]),
        (1, ["wa"]),
    ],
)
def test_few_questions_are_about_as_many_windows_as_there_can_be(most, expected):
    windows, questions = _spread(WINDOWS, QUESTIONS, most)
    assert [windows[question.window].name + question.prompt for question in questions] == expected
    if most is not None and most < len(QUESTIONS):
        assert len(windows) == len({entry[0] for entry in expected})  # none that nothing is asked about


def test_windows_of_few_questions_are_far_apart():
    """Windows may be in order of time."""
    questions = [Question(window, "a", ("mean", "t2m", ())) for window in range(100)]
    windows, kept = _spread(list(range(100)), questions, 5)
    assert windows == [0, 20, 40, 60, 80]
    assert [question.window for question in kept] == [0, 1, 2, 3, 4]


# ---- Times that a model has seen, and times too close to them


def _windows(*spans):
    """Windows from one time to another, in hours from noon of 10 March."""
    noon = np.datetime64("2026-03-10T12:00", "s")
    return [
        (SimpleNamespace(time=np.array([noon + np.timedelta64(hours, "h") for hours in span])), [])
        for span in spans
    ]


@pytest.mark.parametrize(
    ("span", "kept"),
    [
        ((-40, -25), True),
        ((-40, -24), False),  # ends a gap before: not more than one away
        ((-30, -10), False),
        ((-2, 2), False),
        ((5, 6), False),
        ((6, 30), False),  # begins within training
        ((20, 40), False),  # begins within the gap after it
        ((30, 40), False),  # begins at its end
        ((31, 50), True),
        ((200, 210), True),
        ((-30, 40), False),  # all of training in it
    ],
)
def test_windows_are_a_gap_away_from_times_that_were_seen_on_both_sides(span, kept):
    """Training was from noon for six hours, the gap is a day: from 24 hours before to 30 hours after."""
    seen = [("2026-03-10T12:00", "2026-03-10T18:00")]
    far = _windows((900, 901))
    examples = [*_windows(span), *far]
    told = []
    found = _unseen(examples, seen, gap_hours=24, say=told.append)
    assert found == (examples if kept else far)
    assert len(told) == (not kept)


def test_validation_times_were_seen_too_and_where_all_were_nothing_is_asked():
    seen = [("2026-03-01", "2026-03-02"), ("2026-03-10T00:00", "2026-03-11T00:00")]
    with pytest.raises(ConfigurationError) as caught:
        _unseen(_windows((0, 1), (14, 20)), seen, gap_hours=6, say=lambda line: None)
    assert "2026-03-10T00:00 to 2026-03-11T00:00" in caught.value.expected
    assert _unseen([], seen, gap_hours=6, say=lambda line: None) == []


@pytest.mark.parametrize(
    ("span", "kept"),
    [(("2026-02-30", "2026-03-11"), False), (("2026-02-01", "2026-02-30"), True)],
)
def test_dates_of_another_calendar_are_told_apart_from_seen_ones_all_the_same(span, kept):
    """A model of a calendar of 360 days, asked about fields of the common one, and the other way round."""
    far, (window,) = _windows((900, 901)), _windows((0, 1))
    assert (
        _unseen([window, *far], [span], gap_hours=6, say=lambda line: None)
        == ([window] if kept else []) + far
    )
    day = [cftime.datetime(2026, 3, number, calendar="360_day") for number in (28, 29)]
    other = SimpleNamespace(time=np.array(day)), []
    later = SimpleNamespace(time=np.array([cftime.datetime(2027, 1, 1, calendar="360_day")])), []
    seen = [("2026-03-29", "2026-03-31T12:00")]
    assert _unseen([other, later], seen, gap_hours=6, say=lambda line: None) == [later]


def test_a_date_that_no_fields_can_have_is_named_with_their_calendar():
    with pytest.raises(CheckpointError) as caught:
        _unseen(_windows((0, 1)), [("0000-01-01", "2026-03-10")], gap_hours=6, say=lambda line: None)
    assert caught.value.received == "0000-01-01"
    assert "standard" in caught.value.expected


# ---- Lesser figures replace no others


def _figures(weights="ab", controls=()):
    return {"weights_sha256": weights, "controls": {key: {} for key in controls}}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (None, _figures(), "evaluation.json"),
        (_figures(), _figures(), "evaluation.json"),
        (_figures(controls=["text_only"]), _figures(), "other.json"),
        (_figures(controls=["text_only", "regressor"]), _figures(controls=["regressor"]), "other.json"),
        (_figures(controls=["text_only"]), _figures(controls=["text_only"]), "evaluation.json"),
        (_figures(controls=["text_only"]), _figures(controls=["text_only", "regressor"]), "evaluation.json"),
        (_figures(controls=["text_only"]), _figures(controls=["regressor"]), "evaluation.json"),
        (_figures("another model", ["text_only"]), _figures(), "evaluation.json"),
        ({"weights_sha256": "ab"}, _figures(), "evaluation.json"),
        ("no JSON", _figures(), "evaluation.json"),
    ],
)
def test_figures_without_controls_replace_none_with_them(tmp_path, before, now, expected):
    kept = tmp_path / "evaluation.json"
    if before is not None:
        kept.write_text(before if isinstance(before, str) else json.dumps(before))
    assert record_name("test", thorough=True, is_of_run=True, record=now, kept=kept) == expected


@pytest.mark.parametrize(
    ("split", "thorough", "is_of_run", "expected"),
    [
        ("test", True, False, "other.json"),
        ("validation", False, False, "other.json"),
        ("validation", False, True, "validation.json"),
        ("validation", True, True, "validation.json"),
        ("test", False, True, "test.json"),
    ],
)
def test_a_look_at_something_else_is_not_the_record_of_the_run(
    tmp_path, split, thorough, is_of_run, expected
):
    found = record_name(
        split, thorough=thorough, is_of_run=is_of_run, record=_figures(), kept=tmp_path / "evaluation.json"
    )
    assert found == expected
