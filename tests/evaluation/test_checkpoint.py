"""What of a run is asked about. Oracle: lists made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from climafuse.evaluation.checkpoint import _spread
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
