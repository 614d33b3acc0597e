"""The oracle writes what the fields say, in words that are read back as the facts."""

from __future__ import annotations

import numpy as np
import pytest

from climafuse.data.window import Box
from climafuse.evaluation import Oracle
from climafuse.facts import abstention, agrees, answer_to, extract, parse, question_answer, spoken
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


def test_no_question_no_answer():
    assert Oracle().answer([WINDOW, WINDOW], ["Tell me a joke.", "How are you?"]) == ["", ""]
    assert answer_to("Tell me a joke.", FACTS[0]) is None
