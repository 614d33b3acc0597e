"""The oracle writes what the fields say, in words that are read back as the facts."""

from __future__ import annotations

import numpy as np
import pytest

from climafuse.data.window import Box
from climafuse.evaluation import Oracle
from climafuse.evaluation.subjects import Subjects
from climafuse.facts import Fact, abstention, agrees, answer_to, extract, parse, question_answer, spoken
from climafuse.facts.phrasing import WORDINGS, phrase
from tests.evaluation.stores import random_store

WINDOW = random_store().window(11, Box(2.5, 22.5, 5, 5), 2)
FACTS = extract(WINDOW)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{fact.kind}-{fact.variable}")
def test_every_fact_is_written_in_the_words_of_the_question(fact):
    for seed in range(8):
        prompt, expected = question_answer(fact, np.random.default_rng(seed))
        (text,) = Oracle().answer([WINDOW], [prompt], index=[0])
        assert text == expected
        (said,) = parse(text, prompt)
        assert said == spoken(fact)
        assert agrees(said, fact)


def test_every_wording_has_its_answer():
    for fact in FACTS:
        for wording in WORDINGS[fact.kind]:
            if not wording.variables or fact.variable in wording.variables:
                prompt, answer = phrase(fact, wording)
                assert answer_to(prompt, fact) == answer


def test_what_is_not_there_is_said_in_the_words_of_the_question():
    for seed in range(20):
        prompt, expected = abstention(
            "z500", np.random.default_rng(seed), kinds=["mean", "maximum", "change"]
        )
        assert Oracle().answer([WINDOW], [prompt]) == [expected]


def test_questions_in_other_words_are_answered_as_declared():
    for fact in FACTS:
        oracle = Oracle(Subjects([("How is it there?", fact.key)]))
        (text,) = oracle.answer([WINDOW], ["How is it there?"])
        assert parse(text) == [spoken(fact)]
    (text,) = Oracle(Subjects([("How high up?", ("mean", "z500", ()))])).answer([WINDOW], ["How high up?"])
    assert parse(text, key=("mean", "z500", ())) == [Fact("absent", "z500", "absent")]


def test_words_that_ask_for_several_things_are_answered_with_all_of_them():
    asked = [fact for fact in FACTS if fact.kind in ("mean", "maximum", "direction")]
    assert len(asked) > 3
    (text,) = Oracle(Subjects(("And?", fact.key) for fact in asked)).answer([WINDOW], ["And?"])
    assert set(parse(text)) == set(map(spoken, asked))


def test_no_question_no_answer():
    assert Oracle().answer([WINDOW, WINDOW], ["Tell me a joke.", "How are you?"]) == ["", ""]
    assert answer_to("Tell me a joke.", FACTS[0]) is None
