"""Values out of JSON: of the wanted type, or not there."""

from __future__ import annotations

import json

import pytest

from climafuse.json_values import LONGEST_TEXT, interval, number, rows, table, text


@pytest.mark.parametrize(
    ("spelled", "value"),
    [("0.5", 0.5), ("-3", -3.0), ("true", None), ("null", None), ('"1"', None), ("NaN", None), ("-Infinity", None),
     ("1" + "0" * 400, None), ("[1]", None)],
)  # fmt: skip
def test_numbers_are_finite_or_not_there(spelled, value):
    assert number(json.loads(spelled)) == value


def test_texts_are_bounded_and_of_texts_and_numbers_only():
    assert [text(value) for value in ("a", 3, 0.5, True, None, ["a"], {})] == [
        "a",
        "3",
        "0.5",
        "",
        "",
        "",
        "",
    ]
    assert text("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    assert text("x" * 5000, 10) == "xxxxxxxxxx… (5,000 characters)"


def test_objects_lists_and_intervals():
    found = {"a": {"b": {"c": 1}}, "l": [1, 2]}
    assert table(found, "a", "b") == {"c": 1}
    assert table(found, "a", "b", "c") == table(found, "l", "x") == table(None) == table([]) == {}
    assert rows(found["l"]) == [1, 2]
    assert rows("ab") == rows(None) == rows({"a": 1}) == []
    assert interval([0.1, 2]) == (0.1, 2.0)
    assert interval([0.1]) is interval([0.1, None]) is interval("ab") is interval([float("nan"), 1]) is None
