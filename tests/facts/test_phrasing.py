"""Words and back: parsing is the inverse of phrasing, for every kind, wording and value."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.errors import UsageError
from climafuse.facts import Fact, abstention, asked, bulletin, overview, parse, question_answer, spoken
from climafuse.facts.kinds import FACT_KINDS, name_of
from climafuse.facts.phrasing import (
    ABSENCES,
    NAMED_ABSENCES,
    OVERVIEW_KINDS,
    WORDINGS,
    overview_facts,
    phrase,
)
from climafuse.facts.unseen import UNSEEN_NAMES
from tests.facts.examples import KEYS, facts, wordings

ABSENT = [("absent", variable, ()) for variable in FACT_KINDS["absent"].rules]


def extremes(key: tuple) -> list[Fact]:
    """Every class, or a few telling values."""
    kind, variable, qualifiers = key
    entry = FACT_KINDS[kind]
    if entry.form == "number":
        return [Fact(kind, variable, value, qualifiers) for value in (-12.4, -0.04, 0.0, 0.06, 7.5, 1013.2)]
    if entry.form == "position":
        places = [(0.0, 0.0), (-90.0, 180.0), (90.0, 180.5), (42.25, 343.125), (-0.2, 359.9)]
        return [Fact(kind, variable, p, qualifiers, (c, c)) for p in places for c in (1.0, 0.25, 2.5)]
    if kind == "comparison":
        return [Fact(kind, variable, v, qualifiers) for v in (*qualifiers[0][1].split("-"), "equal")]
    return [Fact(kind, variable, value, qualifiers) for value in entry.values]


@pytest.mark.parametrize("kind", [kind for kind in FACT_KINDS if kind != "absent"])
def test_parse_is_the_inverse_of_every_wording(kind: str) -> None:
    """Every wording, exhaustively; and what is cut off tells no other fact."""
    for key in KEYS:
        if key[0] != kind:
            continue
        for fact in extremes(key):
            for wording in wordings(fact):
                prompt, answer = phrase(fact, wording)
                assert parse(answer) == [spoken(fact)]
                assert parse(answer, prompt) == [spoken(fact)]
                assert asked(prompt) == fact.key
                assert parse(f"Sure! {answer} I hope this helps, in 1997.") == [spoken(fact)]
                assert parse(answer.upper().replace(" ", "\n ")) == [spoken(fact)]


def test_words_cut_off_never_tell_another_fact() -> None:
    seen = set()
    for key in KEYS:
        # Every value for one variable of a kind, and one value for the others: names can be cut off as well.
        for fact in extremes(key)[: 1 if key[0] in seen else None]:
            for wording in wordings(fact):
                prompt, answer = phrase(fact, wording)
                for end in range(len(answer)):
                    assert parse(answer[:end], prompt) in ([], [spoken(fact)]), answer[:end]
        seen.add(key[0])


@settings(deadline=None)
@given(facts(), st.integers(0, 2**31))
def test_questions_and_answers_read_back(fact: Fact, seed: int) -> None:
    prompt, answer = question_answer(fact, np.random.default_rng(seed))
    assert parse(answer) == [spoken(fact)]
    assert asked(prompt) == fact.key
    again = parse(answer)[0]
    for wording in wordings(again):  # a parsed fact can be phrased as well
        assert parse(phrase(again, wording)[1]) == [again]


@settings(deadline=None)
@given(st.lists(facts(), min_size=1, max_size=8, unique_by=lambda fact: fact.key), st.integers(0, 2**31))
def test_bulletins_read_back(several: list[Fact], seed: int) -> None:
    prompt, text = bulletin(several, np.random.default_rng(seed))
    assert set(parse(text)) == {spoken(fact) for fact in several}
    assert len(parse(text)) == len(several)
    assert parse(prompt) == []
    assert not re.search(r"-?\d+ (?:°C|hPa\b(?! )|m/s|mm|dam)", prompt)
    # Cut anywhere, the facts read are a beginning of those of the whole.
    cut = parse(text[: len(text) * 2 // 3])
    assert cut == parse(text)[: len(cut)]


@settings(deadline=None)
@given(st.lists(facts(), max_size=8, unique_by=lambda fact: fact.key), st.integers(0, 2**31))
def test_overviews_state_the_headlines_in_one_order(several: list[Fact], seed: int) -> None:
    headlines = {spoken(fact) for fact in several if fact.kind in OVERVIEW_KINDS}
    result = overview(several, np.random.default_rng(seed))
    if not headlines:
        assert result is None
        return
    assert result is not None
    assert set(parse(result[1])) == headlines
    assert result == overview(several[::-1], np.random.default_rng(seed))
    assert parse(result[1]) == [spoken(fact) for fact in overview_facts(several)]


def test_an_answer_is_a_function_of_question_and_spoken_fact() -> None:
    rng = np.random.default_rng(0)
    answers: dict[tuple, set[str]] = defaultdict(set)
    kinds: dict[str, set[tuple]] = defaultdict(set)
    for key in KEYS:
        for fact in extremes(key):
            for _ in range(12):
                prompt, answer = question_answer(fact, rng)
                answers[prompt, spoken(fact), fact.cell].add(answer)
                kinds[prompt].add(fact.key)
    assert all(len(texts) == 1 for texts in answers.values())
    assert all(len(keys) == 1 for keys in kinds.values())  # no question is asked for two facts


def test_questions_do_not_depend_on_the_value() -> None:
    for key in KEYS:
        prompts = {tuple(phrase(fact, wording)[0] for wording in wordings(fact)) for fact in extremes(key)}
        assert len(prompts) == 1


def test_every_kind_has_at_least_four_wordings() -> None:
    for key in KEYS:
        assert len(wordings(Fact(key[0], key[1], "", key[2]))) >= (3 if key[0] == "comparison" else 4)


def test_answers_are_short_and_numbers_plain() -> None:
    lengths = {
        key: [len(phrase(fact, wording)[1].split()) for fact in extremes(key) for wording in wordings(fact)]
        for key in KEYS
    }
    usual = [n for key, counts in lengths.items() if key[1] in ("t2m", "msl", "ws10", "wd10") for n in counts]
    assert np.mean(usual) < 7
    assert max(usual) <= 11
    assert max(max(counts) for counts in lengths.values()) <= 13  # "sea surface temperature anomaly" has four
    texts = {
        question_answer(fact, np.random.default_rng(1))[1]
        for fact in (
            Fact("mean", "t2m", -12.3),
            Fact("mean", "msl", 1013.2),
            Fact("mean", "ws10", 7.4),
            Fact("mean", "tp", 0.04),
            Fact("maximum_position", "t2m", (42.0, 343.0), cell=(1.0, 1.0)),
        )
    }
    for expected in ("-12 °C", "1013 hPa", "7 m/s", "0.0 mm", "42°N, 17°W"):
        assert any(expected in text for text in texts), (expected, texts)


@pytest.mark.parametrize("variable", list(FACT_KINDS["absent"].rules))
@pytest.mark.sampled(4)
def test_abstentions_read_back_and_ask_as_others_do(variable: str) -> None:
    rng = np.random.default_rng(3)
    questions = set()
    for number in range(12 if variable in UNSEEN_NAMES else 60):
        prompt, answer = abstention(variable, rng)
        assert parse(answer, prompt) == [Fact("absent", variable, "absent")]
        assert parse(answer) == []  # it says nothing without its question
        for end in range(len(answer) if number < (3 if variable in UNSEEN_NAMES else 20) else 0):
            assert parse(answer[:end], prompt) in ([], [Fact("absent", variable, "absent")])
        questions.add((prompt, answer))
        if variable not in UNSEEN_NAMES:
            key = asked(prompt)
            assert key is not None
            assert key[1] == variable
    prompts = [prompt for prompt, _ in questions]
    assert len(set(prompts)) == len(prompts)  # one answer for each question
    assert len(prompts) >= 4


@pytest.mark.parametrize("variable", list(FACT_KINDS["absent"].rules))
def test_absences_of_other_models_are_read_with_their_names(variable: str) -> None:
    for template in NAMED_ABSENCES:
        text = template.format(name=name_of(variable))
        assert parse(text) == [Fact("absent", variable, "absent")]
        assert parse(text, "What is the mean temperature?") == [Fact("absent", variable, "absent")]
        for end in range(len(text)):  # half a sentence tells of nothing else
            assert parse(text[:end]) in ([], [Fact("absent", variable, "absent")])


def test_all_forms_of_absence_are_used_and_kinds_obeyed() -> None:
    rng = np.random.default_rng(0)
    pairs = [abstention("msl", rng, kinds=["mean"]) for _ in range(100)]
    assert {answer for _, answer in pairs} == set(ABSENCES)
    assert {asked(prompt) for prompt, _ in pairs} == {("mean", "msl", ())}
    with pytest.raises(UsageError, match="wd10"):
        abstention("wd10", rng, kinds=["mean"])
    with pytest.raises(UsageError, match="w500"):
        abstention("w500", rng)


def test_what_has_no_words_is_refused() -> None:
    rng = np.random.default_rng(0)
    for fact in (Fact("absent", "t2m", "absent"), Fact("mode", "t2m", 3.0), Fact("mean", "w500", 3.0)):
        with pytest.raises(UsageError):
            question_answer(fact, rng)
    with pytest.raises(UsageError, match="at least one"):
        bulletin([], rng)


def test_wordings_name_only_slots_that_exist() -> None:
    for kind, entries in WORDINGS.items():
        for wording in entries:
            assert not re.search(r"\{(number|signed|move|position|value)\}", wording.question), (
                kind,
                wording,
            )
            if FACT_KINDS[kind].values and not wording.answer:
                assert set(wording.cases) == set(FACT_KINDS[kind].values)
