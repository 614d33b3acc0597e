"""The verdict: do the words come from the fields?

Each check compares two scores of the same samples. Where an interval of the difference can be claimed, it must lie
beyond zero; where none can, the difference must be at least `MARGIN`. A model is called grounded if no check fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MARGIN = 0.1  # of fact F1


@dataclass(frozen=True)
class Difference:
    """How much higher one score is than another, on the same samples.

    Args:
        value: The difference; None if one of the two was not measured.
        interval: Its 95 % interval; None where none is claimed.
        p: Two-sided p-value; None where none is claimed.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    p: float | None = None

    def is_positive(self) -> bool | None:
        """Whether the first is higher; None if not measured."""
        if self.value is None:
            return None
        return self.interval[0] > 0 if self.interval is not None else self.value >= MARGIN


@dataclass(frozen=True)
class Check:
    """One thing that a grounded model does.

    Args:
        name: The two scores compared.
        meaning: What it means that the first is higher.
        failure: What it means that it is not.
    """

    name: tuple[str, str]
    meaning: str
    failure: str


CHECKS = (
    Check(
        ("true", "prior"),
        "it knows more than the best guesser, who knows the place and the training times",
        "a guesser who knows the place and the training times does as well",
    ),
    Check(
        ("true", "shuffled"),
        "its words change with the values of the field",
        "its words are the same whatever the field holds: the answer comes from the question or from memory",
    ),
    Check(
        ("shown", "shuffled"),
        "its words follow the field that it is shown",
        "its words do not follow the field that it is shown",
    ),
    Check(
        ("true", "blank"),
        "without a field it cannot tell",
        "it is right without any field",
    ),
    Check(
        ("true", "text_only"),
        "the questions alone do not give the answers away",
        "a model that sees no field learned as much from the questions alone: they give the answers away",
    ),
    Check(
        ("true", "place_only"),
        "place and time alone do not give the answers away",
        "a model that knows place and time only does as well: geography is enough",
    ),
)


def verdict(differences: Mapping[tuple[str, str], Difference]) -> dict[str, Any]:
    """Judge by the differences.

    Args:
        differences: (one, other) → how much higher the one is.

    Returns:
        `grounded`, and `checks`: `name`, `passed` (None where not measured), `value`, `limit`, `interval`,
        `meaning`.
    """
    rows = []
    for check in CHECKS:
        difference = differences.get(check.name, Difference(None))
        passed = difference.is_positive()
        rows.append(
            {
                "name": " - ".join(check.name),
                "passed": passed,
                "value": difference.value,
                "limit": MARGIN if difference.interval is None else 0.0,
                "interval": None if difference.interval is None else list(difference.interval),
                "meaning": check.failure if passed is False else check.meaning,
            }
        )
    measured = [row["passed"] for row in rows if row["passed"] is not None]
    return {"grounded": bool(measured) and all(measured), "checks": rows}
