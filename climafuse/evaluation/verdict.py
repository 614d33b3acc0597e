"""The verdict: do the words come from the fields?

Each check compares two scores of the same samples. It passes where an interval of the difference lies beyond zero. It
fails where the first is no higher, or the whole interval below `MARGIN`. What lies between tells nothing: too few
samples; nor does anything of fewer than `FEWEST` windows. Where no interval can be claimed, the difference must be at
least `MARGIN`.

What is said under swapped values tells something only where the swap changes the right answer: checks of it are of
these questions. And where the best guesser lacks less than `MARGIN` of being always right, who reads cannot be much
better than who does not: a check against what has no field then fails only if the model is worse.

Beside the checks of all facts together, each variable and each kind of fact is looked at by itself: a model that reads
one of them and remembers the others is not grounded. Of its questions, only those tell anything whose right answer the
swap of values changes. Of these, who reads has all right against the field shown and none against the original, however
seldom it rains; who does not read has as many right of the one as of the other, or none. So a variable or kind is read
where an interval of the difference of the two lies beyond zero, and not read where the difference is not above zero
or the whole interval below `HALF`. Where no interval can be claimed, the difference must be at least that. What lies
between cannot be told. One with fewer than `FEWEST` such questions or windows is not judged: the verdict names it and
rests on the others, which must have at least `ENOUGH` of these questions.

A model is called grounded if checks were made, all pass, and all that is judged is read, and is enough; not grounded if
one fails or is not read; else it cannot be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MARGIN = 0.1  # of fact F1
HALF = 0.5  # of fact F1, of questions whose answer the swap changes: between who reads and who does not
ENOUGH = 0.5  # of these questions, that are about what is judged
FEWEST = 10  # windows, and questions about a variable or of a kind, that tell anything


@dataclass(frozen=True)
class Difference:
    """How much higher one score is than another, on the same samples.

    Args:
        value: The difference; None if one of the two was not measured.
        num_windows: That the samples are of.
        interval: Its 95 % interval; None where none is claimed.
        p: Two-sided p-value; None where none is claimed.
    """

    value: float | None
    num_windows: int = 0
    interval: tuple[float, float] | None = None
    p: float | None = None

    def is_positive(self, margin: float = MARGIN) -> bool | None:
        """Whether the first is higher; None if not measured, or if the samples do not tell.

        Args:
            margin: What a difference below it is no reason to believe in, where no interval is claimed.
        """
        if self.value is None or self.num_windows < FEWEST:
            return None
        if self.value <= 0:
            return False
        if self.interval is None:
            return True if self.value >= margin else None
        if self.interval[0] > 0:
            return True
        return None if self.interval[1] >= margin else False

    @property
    def is_negative(self) -> bool | None:
        """Whether the first is lower; None as of `is_positive`."""
        if self.value is None:
            return None
        turned = None if self.interval is None else (-self.interval[1], -self.interval[0])
        return Difference(-self.value, self.num_windows, turned, self.p).is_positive()


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

    @property
    def is_of_swap(self) -> bool:
        """Whether it is of questions only whose right answer the swap of values changes."""
        return "shuffled" in self.name


CHECKS = (
    Check(
        ("true", "prior"),
        "it knows more than the best guesser, who knows the place and the training times",
        "a guesser who knows the place and the training times does as well",
    ),
    Check(
        ("true", "shuffled"),
        "its words change with the values of the field, where these change the answer",
        "its words are the same whatever the field holds: the answer comes from the question or from memory",
    ),
    Check(
        ("shown", "shuffled"),
        "its words follow the field that it is shown, where that changes the answer",
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


@dataclass(frozen=True)
class Reading:
    """What came of the questions about one variable, or of one kind, whose right answer the swap of values changes.

    Args:
        num_questions: Of these.
        shown: F1 against the field shown; None where there are none.
        shuffled: F1 against the original; likewise.
        difference: Of the two.
    """

    num_questions: int
    shown: float | None
    shuffled: float | None
    difference: Difference

    @property
    def is_judged(self) -> bool:
        """Whether there are enough to judge by."""
        return min(self.num_questions, self.difference.num_windows) >= FEWEST

    @property
    def follows(self) -> bool | None:
        """Whether the answers follow the field shown; None if that cannot be told."""
        return self.difference.is_positive(HALF) if self.is_judged else None


def verdict(
    differences: Mapping[tuple[str, str], Difference],
    *,
    best_guess: float = 0.0,
    variables: Mapping[str, Reading] | None = None,
    kinds: Mapping[str, Reading] | None = None,
) -> dict[str, Any]:
    """Judge by the differences.

    Args:
        differences: (one, other) → how much higher the one is; of a check of the swap, on the questions whose right
            answer it changes.
        best_guess: Fact F1 of the best guesser.
        variables: Variable → how it is read; None where that was not looked at.
        kinds: Kind of fact → likewise.

    Returns:
        `grounded`: True, False, or None where it cannot be told; `words`: the same in words, with what was not
        measured; `checks`: `name`, `passed` (None where not measured, or not to be told), `measured`, `value`,
        `limit`, `interval`, `meaning`; `variables` and `kinds`: name → `num_questions`, `shown`, `shuffled`,
        `interval` (of the difference), `judged` (False with too few questions), `read`.
    """
    rows, reasons = [], []
    for check in CHECKS:
        difference = differences.get(check.name, Difference(None))
        passed, measured, meaning = difference.is_positive(), difference.value is not None, check.meaning
        if (
            passed is False
            and not check.is_of_swap
            and 1 - best_guess < MARGIN
            and not difference.is_negative
        ):
            passed, meaning = None, f"the questions are too easy to tell whether {meaning}"
            reasons.append("too easy questions")
        elif passed is False:
            meaning = check.failure
        elif measured and passed is None:
            meaning = f"too few samples to tell whether {meaning}"
            reasons.append("too few samples")
        rows.append(
            {
                "name": " - ".join(check.name),
                "passed": passed,
                "measured": measured,
                "value": difference.value,
                "limit": MARGIN if difference.interval is None else 0.0,
                "interval": None if difference.interval is None else list(difference.interval),
                "meaning": meaning,
            }
        )
    results = [row["passed"] for row in rows if row["measured"]]
    read = {"variables": _rows(variables or {}), "kinds": _rows(kinds or {})}
    for given, found in zip((variables, kinds), read.values(), strict=True):
        judged = [row for row in found.values() if row["judged"]]
        results += [row["read"] for row in judged]
        if None in (row["read"] for row in judged):
            reasons.append("too few samples")
        num_judged, num_questions = (
            sum(row["num_questions"] for row in part) for part in (judged, found.values())
        )
        if given is not None and (not judged or num_judged < ENOUGH * num_questions):
            results.append(None)
            reasons.append("too few questions whose answer a swap changes")
    grounded = False if False in results else True if results and None not in results else None
    words = {True: "grounded", False: "not grounded", None: f"cannot be told: {_why(reasons)}"}[grounded]
    return {"grounded": grounded, "words": words + _notes(rows, read), "checks": rows, **read}


def _rows(readings: Mapping[str, Reading]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "num_questions": reading.num_questions,
            "shown": reading.shown,
            "shuffled": reading.shuffled,
            "interval": None if reading.difference.interval is None else list(reading.difference.interval),
            "judged": reading.is_judged,
            "read": reading.follows,
        }
        for name, reading in sorted(readings.items())
    }


def _why(reasons: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(reasons)) or "nothing was measured"


def _notes(rows: Sequence[Mapping[str, Any]], read: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """What the verdict does not rest on, and what is not read, in brackets."""
    parts = [(name, row) for found in read.values() for name, row in found.items()]
    named = {
        "not read": [name for name, row in parts if row["read"] is False],
        "not clear whether read": [name for name, row in parts if row["judged"] and row["read"] is None],
        "too few questions": [name for name, row in parts if not row["judged"]],
        "not measured": [str(row["name"]) for row in rows if not row["measured"]],
    }
    notes = [f"{note}: {', '.join(names)}" for note, names in named.items() if names]
    return f" ({'; '.join(notes)})" if notes else ""
