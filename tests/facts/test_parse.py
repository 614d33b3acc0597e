"""Reading what a model wrote: prose, mistakes, nonsense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from climafuse.facts import Fact, bulletin, parse
from climafuse.facts.kinds import FACT_KINDS
from climafuse.facts.phrasing import WORDINGS
from tests.facts.examples import KEYS, facts

MEAN = Fact("mean", "t2m", 8.0)


@given(st.text(), st.none() | st.text())
@example("\ud800", "\x00")
@example("Mean temperature " + "9" * 400 + " °C", None)
@example("maximum temperature lies at 99°N, 999°E", None)
def test_no_string_raises(text: str, prompt: str | None) -> None:
    for fact in parse(text, prompt):
        assert fact.kind in FACT_KINDS


words = st.sampled_from(
    # A heap of our own words.
    [
        "The",
        "Mean",
        "highest",
        "temperature",
        "pressure",
        "sea",
        "surface",
        "anomaly",
        "wind",
        "speed",
        "calm",
        "is",
        "at",
        "by",
        "in",
        "the",
        "of",
        "from",
        "north",
        "northwest",
        "12",
        "-3.5",
        "°C",
        "hPa",
        "m/s",
        "mm",
        "mm/day",
        "°N,",
        "17°W",
        ",",
        ".",
        ";",
        ":",
        "Yes",
        "No",
        "frost",
        "ENSO",
        "state:",
        "El",
        "Niño",
        "Niño",
        "3.4",
        "index",
        "The",
        "fields",
        "hold",
        "no",
        "data",
        "What",
        "is",
        "the",
        "mean",
        "temperature?",
        "?",
        "+",
        "−",
        "°",
        "half",
        "and",
        "equal",
    ]
)


@given(st.lists(words, max_size=40), st.none() | st.lists(words, max_size=10))
def test_no_heap_of_words_raises(text: list[str], prompt: list[str] | None) -> None:
    for fact in parse(" ".join(text), None if prompt is None else " ".join(prompt)):
        assert fact.variable in FACT_KINDS[fact.kind].rules


@settings(deadline=None, max_examples=60)
@given(st.lists(facts(), min_size=1, max_size=4), st.integers(0, 99), st.data())
def test_a_damaged_bulletin_raises_nothing(several: list[Fact], seed: int, data: st.DataObject) -> None:
    _, text = bulletin(several, np.random.default_rng(seed))
    at = data.draw(st.integers(0, len(text)))
    parse(text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 5)) :])


@pytest.mark.parametrize(
    "text",
    [
        "Mean temperature 8 °C.",
        "mean temperature  8°C",
        "Mean temperature: 8 C",
        "MEAN TEMPERATURE 8 degrees Celsius",
        "Well, the mean temperature 8.0 °C, I think",
        "Mean temperature 8 °C. Mean temperature 8 °C.",
        "The temperature averages\n8 °C",
        "Mean temperature +8 ºC",
    ],
)
def test_ways_to_write_one_fact(text: str) -> None:
    assert parse(text) == [MEAN]


@pytest.mark.parametrize("minus", ["-8", "−8", "–8", "minus 8", "- 8"])
def test_ways_to_write_a_minus(minus: str) -> None:
    assert parse(f"Mean temperature {minus} °C.") == [Fact("mean", "t2m", -8.0)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Mean temperature.",
        "Mean temperature 8",
        "Mean temperature 8 °",
        "Mean temperature 8 hPa.",  # another unit is no such fact
        "Mean precipitation rate 3.0 mm.",
        "Mean temperature is unknown.",
        "Mean ocean temperature 8 °C.",
        "Mean temperatures 8 °C.",
        "Mean temperature 8 °C/day.",
        "Wind from the norther",
        "The wind comes from the north",  # may have been cut from "northwest"
        "There is no heat flux.",
        "Highest temperature at 42°N, 17",
        "Highest temperature at 99°N, 17°W.",
        "It is higher in the north.",
    ],
)
def test_what_says_nothing(text: str) -> None:
    assert parse(text) == []


def test_names_that_hold_other_names() -> None:
    assert parse("Mean sea surface temperature 20 °C.") == [Fact("mean", "sst", 20.0)]
    assert parse("Highest sea surface temperature anomaly 2.5 °C.") == [Fact("maximum", "sst_anomaly", 2.5)]
    assert parse("Mean sea surface temperature anomaly +1.2 °C.") == [Fact("anomaly", "sst", 1.2)]
    assert parse("Mean 850 hPa temperature -3 °C.") == [Fact("mean", "t850", -3.0)]
    assert parse("Mean surface pressure 950 hPa. Mean pressure 1013 hPa.") == [
        Fact("mean", "sp", 950.0),
        Fact("mean", "msl", 1013.0),
    ]
    assert parse("Wind from the north-west.") == [Fact("direction", "wd10", "northwest")]
    assert parse("ENSO state: La Nina.") == [Fact("enso", "sst", "La Niña")]


def test_contradictions_are_kept_in_order() -> None:
    text = "Mean temperature 9 °C. Highest temperature 12 °C. The temperature averages 8 °C."
    assert [fact.value for fact in parse(text)] == [9.0, 12.0, 8.0]


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("What is the mean temperature?", "8 °C", [MEAN]),
        ("What is the mean temperature?", "It is about 8 °C.", [MEAN]),
        ("What is the mean temperature?", "8 °C to 9 °C", []),  # which one?
        ("How far did the temperature go up or down?", "Down by 8 °C", []),  # not +8
        ("What is the mean temperature?", "8", []),
        ("What is the mean temperature?", "8 hPa", []),
        ("What is the mean temperature?", "1013.8 °C.", [Fact("mean", "t2m", 1013.8)]),
        ("Where is the pressure lowest?", "42°N, 17°W.", [Fact("minimum_position", "msl", (42.0, 343.0))]),
        ("What is the wind direction?", "North-west.", [Fact("direction", "wd10", "northwest")]),
        ("What is the wind direction?", "calm", [Fact("direction", "wd10", "calm")]),
        ("Is there frost anywhere?", "Yes.", [Fact("event", "t2m", "yes", (("event", "freezing"),))]),
        (
            "Is it windier in the west or in the east?",
            "West.",
            [Fact("comparison", "ws10", "west", (("axis", "west-east"),))],
        ),
        ("Is it windier in the west or in the east?", "North.", []),
        ("What is the mean pressure?", "Not given.", [Fact("absent", "msl", "absent")]),
        ("What is the mean ozone?", "Not given.", [Fact("absent", "ozone", "absent")]),
        (
            "How does the sea ice cover develop?",
            "That is not in these fields.",
            [Fact("absent", "siconc", "absent")],
        ),
        (
            "How does the soil temperature develop?",
            "Not given.",
            [Fact("absent", "soil_temperature", "absent")],
        ),
        ("What is the mean happiness?", "Not given.", []),
        ("How are you?", "8 °C", []),
        # A model that was not taught our wordings repeats the question.
        ("What is the mean temperature?", "The mean temperature over the area is 8 °C.", [MEAN]),
        ("What is the wind direction?", "The wind direction is calm.", [Fact("direction", "wd10", "calm")]),
        ("What is the mean temperature?", "The highest temperature is 8 °C.", []),  # says nothing of the mean
        ("What is the mean temperature?", "The mean pressure is 8 °C.", []),
        ("What is the mean temperature?", "The mean temperature is 8 hPa.", []),
        ("What is the mean temperature?", "The mean temperature is 8 °C or 9 °C.", []),
        ("What is the mean temperature?", "The mean temperature is not 8 °C.", []),
        ("Describe mean temperature.", "8 °C", []),
        # A fact in full goes before the question.
        ("What is the mean pressure?", "Mean temperature 8 °C.", [MEAN]),
    ],
)
def test_elliptic_answers_need_their_question(prompt: str, text: str, expected: list[Fact]) -> None:
    assert parse(text, prompt) == expected
    assert parse(text, f"System: be brief.\n{prompt} Place: 48.9N, 2.3E") == expected


NORTH_SOUTH = ("comparison", "t2m", (("axis", "north-south"),))


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        (MEAN.key, "8 °C", [MEAN]),
        (MEAN.key, "It is about 8 °C.", [MEAN]),
        (MEAN.key, "8 hPa", []),
        (MEAN.key, "The highest temperature is 8 °C.", []),
        (MEAN.key, "Not given.", [Fact("absent", "t2m", "absent")]),
        (MEAN.key, "Mean pressure 1013 hPa.", [Fact("mean", "msl", 1013.0)]),  # in full: what it says counts
        (NORTH_SOUTH, "The north.", [Fact(*NORTH_SOUTH[:2], "north", NORTH_SOUTH[2])]),
        (NORTH_SOUTH, "The west.", []),
        (("absent", "t2m", ()), "That is not given.", [Fact("absent", "t2m", "absent")]),
        (("absent", "t2m", ()), "8 °C", []),  # nothing tells of what
        (("absent", "ozone", ()), "The fields do not hold that.", [Fact("absent", "ozone", "absent")]),
    ],
)
def test_where_it_is_known_what_is_asked_for_the_question_may_have_any_words(key, text, expected) -> None:
    for prompt in ("How warm is it around here, on the whole?", "Tell me about the barometer.", "", None):
        assert parse(text, prompt, key=key) == expected
    # Words that ask for something else do not change what is known.
    assert parse(text, "What is the highest wind speed?", key=key) == expected


def test_that_something_is_absent_does_not_tell_which_value_was_asked_for() -> None:
    absent = ("absent", "t2m", ())
    assert parse("8 °C", "What is the mean temperature?", key=absent) == [MEAN]
    assert parse("8 °C", "What is the highest temperature?", key=absent) == [Fact("maximum", "t2m", 8.0)]


def test_no_two_kinds_answer_in_the_same_words() -> None:
    seen: dict[str, str] = {}
    for kind, entries in WORDINGS.items():
        for wording in entries:
            assert seen.setdefault(wording.question, kind) == kind
    assert len(KEYS) > 100
