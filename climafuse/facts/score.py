"""How many stated facts are right, how many true facts are stated, and how far off the numbers are.

As in weatherbenchX, the statistic of one example is apart from the metrics: statistics are added over
examples, chunks and processes, and the metrics are computed once from the sum, so that chunked equals whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from climafuse.facts.kinds import Fact, agrees, error


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts for one kind and variable; they add up.

    Args:
        stated: Facts stated; a fact stated twice counts once. stated = right + wrong + unsupported.
        right: Of these, within the tolerance.
        wrong: Of these, beyond it, or stated with contradictory values.
        unsupported: Of these, about something that the reference says nothing of.
        referenced: Facts of the reference.
        recalled: Of these, stated and right.
        num_errors: Stated facts with a numeric error: about something in the reference, right or wrong, but
            neither contradictory nor a class.
        error_sum: Sum of their errors, in the unit of the rule.
    """

    stated: int = 0
    right: int = 0
    wrong: int = 0
    unsupported: int = 0
    referenced: int = 0
    recalled: int = 0
    num_errors: int = 0
    error_sum: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.stated + other.stated,
            self.right + other.right,
            self.wrong + other.wrong,
            self.unsupported + other.unsupported,
            self.referenced + other.referenced,
            self.recalled + other.recalled,
            self.num_errors + other.num_errors,
            self.error_sum + other.error_sum,
        )


@dataclass(frozen=True)
class Statistic:
    """What is counted in one example, or in many: statistics add up, ``sum(statistics, Statistic())``.

    Args:
        tallies: (kind, variable) → counts.
    """

    tallies: Mapping[tuple[str, str], Tally] = field(default_factory=dict)

    def __add__(self, other: Statistic) -> Statistic:
        tallies = dict(self.tallies)
        for key, tally in other.tallies.items():
            tallies[key] = tallies[key] + tally if key in tallies else tally
        return Statistic(tallies)

    def only(self, *, kind: str | None = None, variable: str | None = None) -> Statistic:
        """The part about one kind, one variable, or both."""
        return Statistic(
            {
                key: tally
                for key, tally in self.tallies.items()
                if kind in (None, key[0]) and variable in (None, key[1])
            }
        )

    def total(self) -> Tally:
        """All counts together. Its error sum mixes units: take errors from ``metrics``."""
        return sum(self.tallies.values(), Tally())


@dataclass(frozen=True)
class Score:
    """Metrics of a statistic; NaN where there is nothing to divide by.

    Args:
        precision: right / stated.
        recall: recalled / referenced.
        f1: Harmonic mean of the two; 0 if nothing is right, NaN if nothing is stated nor referenced.
        errors: "kind/variable" → mean absolute error of the stated facts that the reference holds, in the
            unit of the rule of ``FACT_KINDS`` (degrees for directions, km for positions).
        wrong_rate: wrong / stated: about the right thing, but beyond the tolerance or self-contradictory.
        invented_rate: unsupported / stated: about something the reference does not hold, such as a
            temperature where the right answer is that there is none. precision + wrong_rate + invented_rate =
            1.
        num_stated: Facts stated.
        num_referenced: Facts of the reference.
    """

    precision: float
    recall: float
    f1: float
    errors: Mapping[str, float]
    wrong_rate: float
    invented_rate: float
    num_stated: int
    num_referenced: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; None for NaN."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "errors"}
        plain: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in values.items()}
        return plain | {"errors": dict(self.errors)}


def score(
    predicted: Iterable[Fact], reference: Iterable[Fact], *, support: Iterable[Fact] | None = None
) -> Score:
    """Metrics of one example; over many, add ``statistic`` up and call ``metrics`` once.

    Args:
        predicted: Parsed from words.
        reference: Extracted, exact.
        support: As in ``statistic``.

    Returns:
        The score.
    """
    return metrics(statistic(predicted, reference, support=support))


def statistic(
    predicted: Iterable[Fact], reference: Iterable[Fact], *, support: Iterable[Fact] | None = None
) -> Statistic:
    """Compare the facts of one text with those of its window.

    Facts are matched by kind, variable and qualifiers; a match is right if the stated value agrees with the
    exact one (``kinds.agrees``). Stated twice, a fact counts once; stated with different values, it is wrong.

    Args:
        predicted: Parsed from words.
        reference: Extracted, exact: what the text should state.
        support: Extracted, exact: everything it may state; a fact beyond the question is judged by it rather
            than taken for invented. None for the reference alone.

    Returns:
        The counts.
    """
    expected = {fact.key: fact for fact in reference}
    known = expected if support is None else {fact.key: fact for fact in support} | expected
    stated: dict[tuple[Any, ...], list[Fact]] = {}
    for fact in dict.fromkeys(predicted):
        stated.setdefault(fact.key, []).append(fact)

    tallies: dict[tuple[str, str], Tally] = {}

    def count(kind: str, variable: str, tally: Tally) -> None:
        tallies[kind, variable] = tallies.get((kind, variable), Tally()) + tally

    for fact in expected.values():
        count(fact.kind, fact.variable, Tally(referenced=1))
    for key, facts in stated.items():
        kind, variable = facts[0].kind, facts[0].variable
        exact = known.get(facts[0].key)
        if exact is None:
            count(kind, variable, Tally(stated=1, unsupported=1))
        elif len(facts) > 1:
            count(kind, variable, Tally(stated=1, wrong=1))
        else:
            right = agrees(facts[0], exact)
            distance = error(facts[0], exact)
            count(
                kind,
                variable,
                Tally(
                    stated=1,
                    right=int(right),
                    wrong=int(not right),
                    recalled=int(right and key in expected),
                    num_errors=int(distance is not None),
                    error_sum=distance or 0.0,
                ),
            )
    return Statistic(tallies)


def metrics(statistic: Statistic) -> Score:
    """Metrics from counts.

    Args:
        statistic: Of one example, or the sum over many.

    Returns:
        The score.
    """
    total = statistic.total()
    precision = _ratio(total.right, total.stated)
    recall = _ratio(total.recalled, total.referenced)
    if total.right == 0 or total.recalled == 0:
        f1 = math.nan if total.stated == total.referenced == 0 else 0.0
    else:
        f1 = 2 * precision * recall / (precision + recall)
    return Score(
        precision=precision,
        recall=recall,
        f1=f1,
        errors={
            f"{kind}/{variable}": tally.error_sum / tally.num_errors
            for (kind, variable), tally in sorted(statistic.tallies.items())
            if tally.num_errors
        },
        wrong_rate=_ratio(total.wrong, total.stated),
        invented_rate=_ratio(total.unsupported, total.stated),
        num_stated=total.stated,
        num_referenced=total.referenced,
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
