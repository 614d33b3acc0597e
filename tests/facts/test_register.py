"""A kind, a variable, an event of one's own, through every part of the package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from climafuse.errors import UsageError
from climafuse.facts import (
    EVENTS,
    FACT_KINDS,
    SPOKEN_VARIABLES,
    Event,
    Fact,
    FactKind,
    Rule,
    SpokenVariable,
    Wording,
    bulletin,
    describe,
    extract,
    parse,
    question_answer,
    register_event,
    register_kind,
    register_variable,
    score,
    spoken,
)
from climafuse.facts.extract import EXTRACTORS, Summary
from climafuse.facts.parse import forget
from climafuse.facts.phrasing import WORDINGS
from tests.facts.windows import window


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """The tables as they were."""
    tables = (EVENTS, FACT_KINDS, SPOKEN_VARIABLES, EXTRACTORS, WORDINGS)
    saved = [dict(table) for table in tables]
    rules = {name: dict(kind.rules) for name, kind in FACT_KINDS.items()}
    yield
    for table, before in zip(tables, saved, strict=True):
        table.clear()
        table.update(before)
    for name, before in rules.items():
        FACT_KINDS[name].rules.clear()
        FACT_KINDS[name].rules.update(before)
    forget()


def reads_back(fact: Fact) -> bool:
    return all(
        parse(question_answer(fact, np.random.default_rng(seed))[1]) == [spoken(fact)] for seed in range(12)
    )


def ranges(summary: Summary) -> Iterable[Fact]:
    return [
        Fact("range", name, high - low)
        for name, (low, _, high, _) in summary.extremes.items()
        if name in FACT_KINDS["range"].rules
    ]


def test_a_kind_of_ones_own() -> None:
    register_kind(
        FactKind("range", "number", "range of {name}", {"t2m": Rule("°C", tolerance=1.0)}),
        ranges,
        [Wording("How wide is the range of {name}?", "Range of {name}: {number}.")],
    )
    here = window({"t2m": [[280.0, 287.4]], "msl": [[1e5, 1e5]]}, [0], [0, 1])
    fact = next(fact for fact in extract(here) if fact.kind == "range")
    assert fact.value == pytest.approx(7.4, abs=1e-4)
    assert question_answer(fact, np.random.default_rng(0)) == (
        "How wide is the range of temperature?",
        "Range of temperature: 7 °C.",
    )
    assert reads_back(fact)
    assert set(parse(bulletin([fact], np.random.default_rng(0))[1])) == {spoken(fact)}
    assert score([spoken(fact)], [fact]).f1 == 1.0
    assert {pair.text for pair in describe([(0, here)], kinds=["range"], abstentions=0)} == {
        "Range of temperature: 7 °C."
    }
    with pytest.raises(UsageError, match="range"):
        register_kind(FACT_KINDS["range"], ranges, WORDINGS["range"])


def test_a_variable_of_ones_own() -> None:
    register_variable("tcwv", SpokenVariable("water vapor", "kg/m2", tolerance=2.0))
    here = window({"tcwv": [[20.0, 25.0], [30.0, 35.0]]}, [0, 1], [0, 1])
    facts = extract(here)
    assert {fact.kind for fact in facts} == {
        "mean", "maximum", "minimum", "maximum_position", "minimum_position", "comparison"
    }  # fmt: skip
    assert all(reads_back(fact) for fact in facts)
    with pytest.raises(UsageError, match="water vapor"):
        register_variable("other", SpokenVariable("water vapor", "mm"))


def test_an_event_of_ones_own() -> None:
    register_event("tropical", Event("t2m", 26.0, False, "tropical heat", "to 26 °C or more"))
    facts = extract(window({"t2m": [[300.0]]}, [0], [0]), kinds=["event/t2m"])
    fact = next(fact for fact in facts if fact.qualifier("event") == "tropical")
    assert fact.value == "yes"
    assert reads_back(fact)
    with pytest.raises(UsageError, match="tropical"):
        register_event("tropical", EVENTS["tropical"])
    with pytest.raises(UsageError, match="at least one"):
        register_kind(FactKind("empty", "number", "", {}), ranges, [])


def test_the_longer_of_two_statements_that_overlap_is_read() -> None:
    register_kind(
        FactKind("median", "number", "median {name}", {"t2m": Rule("°C", tolerance=1.0)}),
        lambda summary: [],
        [Wording("What about the middle {name}?", "Not the mean {name} {number} but the median.")],
    )
    fact = Fact("median", "t2m", 8.0)
    answer = question_answer(fact, np.random.default_rng(0))[1]
    assert answer == "Not the mean temperature 8 °C but the median."
    assert parse(answer) == [fact]
