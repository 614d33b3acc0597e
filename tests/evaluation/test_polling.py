"""Polling: questions by hand, and readers that read, agree to all, or say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from climafuse.evaluation.polling import STRATEGIES, count_poll, make_polls
from climafuse.evaluation.questions import truths
from climafuse.facts import Fact, asked
from tests.facts.windows import KELVIN, window

CALM, STORMY = 0.0, 20.0


def weather(temperature, wind, rain=0.0):
    """One number for each variable: frost below 0 °C, heat from 30 °C, gale from 17.2 m/s, wet from 1 mm."""
    shape = (2, 2)
    return window(
        {
            "t2m": np.full(shape, KELVIN + temperature),
            "ws10": np.full(shape, wind),
            "tp": np.full(shape, rain / 1e3),
        },
        [0, 1],
        [5, 6],
    )


def events(questions):
    return [dict(question.key[2])["event"] for question in questions]


# Heat is frequent; frost goes with gales, always; wet weather is rare.
TRAINING = [weather(35, CALM)] * 5 + [weather(-5, STORMY)] * 3 + [weather(35, CALM, 2)]


def test_half_of_the_right_answers_are_yes():
    windows = [weather(-5, CALM), weather(35, STORMY), weather(35, CALM, 2), weather(10, CALM)]
    polls = make_polls(windows, TRAINING, seed=0)
    assert set(polls) == set(STRATEGIES)
    for poll in polls.values():
        assert [question.window for question in poll] == [0, 0, 1, 1, 2, 2]  # in the last nothing takes place
        assert [fact.value for fact in truths(windows, poll)] == ["yes", "no"] * 3
        assert all(asked(question.prompt) == question.key for question in poll)


def test_which_event_does_not_take_place():
    # Frost and nothing else. Of all that does not take place heat is most frequent (6 of 9), but with frost went
    # strong wind and gales (3 of 3).
    windows = [weather(-5, CALM)]
    for seed in range(5):
        polls = make_polls(windows, TRAINING, seed=seed)
        assert events(polls["popular"]) == ["freezing", "heat"]
        assert events(polls["adversarial"])[1] in ("strong_wind", "gale")
    drawn = {events(make_polls(windows, TRAINING, seed=seed)["random"])[1] for seed in range(60)}
    assert drawn == {"heat", "strong_wind", "gale", "wet", "heavy_precipitation"}


def test_counts_by_hand():
    windows = [weather(-5, CALM), weather(35, CALM)]
    poll = make_polls(windows, TRAINING, seed=0)["random"]
    right = truths(windows, poll)

    def say(*values):
        return [
            [] if value is None else [Fact("event", fact.variable, value, fact.qualifiers)]
            for value, fact in zip(values, right, strict=True)
        ]

    assert count_poll(say("yes", "no", "yes", "no"), right) == {
        "num_questions": 4, "accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes_ratio": 0.5, "unanswered": 0,
    }  # fmt: skip
    assert count_poll(say("yes", "yes", "yes", "yes"), right) == {
        "num_questions": 4, "accuracy": 0.5, "precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3),
        "yes_ratio": 1, "unanswered": 0,
    }  # fmt: skip
    # One yes, and it is wrong; two say nothing.
    assert count_poll(say("no", "yes", None, None), right) == {
        "num_questions": 4, "accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0.25, "unanswered": 0.5,
    }  # fmt: skip
    assert count_poll(say(None, None, None, None), right)["precision"] is None


def test_an_answer_about_another_event_is_none():
    gale = Fact("event", "ws10", "no", (("event", "gale"),))
    frost = Fact("event", "t2m", "no", (("event", "freezing"),))
    assert count_poll([[frost]], [gale])["unanswered"] == 1.0
    assert count_poll([[frost]], [gale])["accuracy"] == 0.0
    assert count_poll([[frost, gale]], [gale])["accuracy"] == 1.0


def test_without_events_there_is_nothing_to_ask():
    pressure = window({"msl": np.full((2, 2), 1e5)}, [0, 1], [5, 6])
    assert make_polls([pressure], [pressure], seed=0) == {strategy: [] for strategy in STRATEGIES}
