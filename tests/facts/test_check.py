"""What an answer says beside what the fields say: values, denials, and what cannot be told."""

from __future__ import annotations

import pytest

from climafuse.facts import check_facts
from tests.facts.windows import KELVIN, window

TEN_DEGREES = window({"t2m": KELVIN + 10.0}, range(40, 46), range(6))
MEAN = ("mean", "t2m", ())


@pytest.mark.parametrize(
    ("text", "asked", "said", "field", "right"),
    [
        ("Mean temperature 10 °C.", {}, "10 °C", "10 °C", True),
        ("Mean temperature 14 °C.", {}, "14 °C", "10 °C", False),
        ("10 °C", {"prompt": "What is the mean temperature?"}, "10 °C", "10 °C", True),
        ("10 °C", {"prompt": "Is it warm there?", "key": MEAN}, "10 °C", "10 °C", True),
        ("That is not given.", {"prompt": "Is it warm there?", "key": MEAN}, "absent", "given", False),
        ("That is not given.", {"prompt": "What is the mean temperature?"}, "absent", "given", False),
        ("That is not given.", {"prompt": "What is the mean pressure?"}, "absent", "absent", True),
        ("Mean pressure 1013 hPa.", {}, "1013 hPa", None, None),
    ],
)
def test_what_is_said_beside_what_the_fields_say(text, asked, said, field, right):
    (row,) = check_facts(text, TEN_DEGREES, **asked)
    assert (row["said"], row["field"], row["right"]) == (said, field, right)


def test_what_states_nothing_has_no_rows():
    assert check_facts("Who knows.", TEN_DEGREES) == []
