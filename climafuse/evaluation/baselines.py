"""What one can say without looking: guessers that know the place, and what it was like before.

A model that reads the fields must beat them. They are given more than the model is: the exact fields of the
training times at the very place that is asked about. Of these times they remember those of the same season (15 days
before to 15 days after the day of the year), and of these those of the same time of day, where there are ten or more:
who knows the calendar needs no fields to say that it is warm in summer.

- climatology: the facts of the mean of these fields;
- prior: for each fact the median (of numbers) or the most frequent value (of classes, octants, positions) over
  these times;
- last_training: the facts of the last training time at the place, whatever its season.

Beside these stands persistence: the facts of the time just before the one that is asked about. It has seen what no
memory of training holds, so it is no measure of what is learned by heart, but what forecasters compare with.

Of more than a thousand training times, a thousand at even distances are looked at, the last among them: the median
of so many is known to a twentieth of a standard deviation, and forty years of hours would take days.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from climafuse.data.store import TrainingStore
from climafuse.data.window import Box, Window
from climafuse.evaluation.questions import Key, Question
from climafuse.facts import FACT_KINDS, Fact, extract, spoken, window_box
from climafuse.facts.extract import EXTRACTORS

GUESSERS = ("climatology", "prior", "last_training")
TIMES = 1000  # that are looked at, at most
YEAR = 365.2425 * 24  # hours
SEASON = 15 * 24.0  # hours apart in the year
TIME_OF_DAY = 1.5  # hours apart in the day
ENOUGH = 10  # times of a season, or of a time of day, to be remembered apart


@dataclass(frozen=True)
class Memory:
    """What was seen at one place in training, at the times that are remembered.

    Args:
        mean: Mean of the training fields there, [T, V, H, W] with the history of a window.
        told: Guesser → its answers.
    """

    mean: np.ndarray
    told: Mapping[str, Mapping[Key, Fact]]


def remember(
    store: TrainingStore, windows: Sequence[Window], questions: Sequence[Question], *, history: int
) -> list[Memory | None]:
    """What was seen in training at the places that are asked about, at times like those that are asked about.

    Args:
        store: Fields and splits.
        windows: The windows asked about; only their places and times are looked at.
        questions: The questions.
        history: Steps of a window.

    Returns:
        For each window what was seen there; None where nothing is asked about it.
    """
    steps = store.splits.valid_times("train", history=history)
    asked: list[set[str]] = [set() for _ in windows]
    for question in questions:
        if question.key[0] in EXTRACTORS:
            asked[question.window].add(question.key[0])
    moments = [
        _Moment.of(store, window, steps) if kinds else None
        for window, kinds in zip(windows, asked, strict=True)
    ]
    kinds_of: dict[_Moment, set[str]] = {}  # the facts of no other kind are needed
    for moment, kinds in zip(moments, asked, strict=True):
        if moment is not None:
            kinds_of.setdefault(moment, set()).update(kinds)
    known = {
        moment: _memory(store, moment, int(steps[-1]), history, sorted(kinds))
        for moment, kinds in kinds_of.items()
    }
    return [None if moment is None else known[moment] for moment in moments]


@dataclass(frozen=True)
class _Moment:
    """A place, and the training times that are like the one asked about.

    Args:
        box: The place.
        steps: The times, as steps of the store.
    """

    box: Box
    steps: tuple[int, ...]

    @classmethod
    def of(cls, store: TrainingStore, window: Window, steps: np.ndarray) -> _Moment:
        """Those of the same season, and of these those of the same time of day, where there are enough of them."""
        hours = (store.time[steps] - window.time[-1]) / np.timedelta64(1, "h")
        for period, near in ((YEAR, SEASON), (24.0, TIME_OF_DAY)):
            apart = np.abs((hours + period / 2) % period - period / 2)
            if (apart <= near).sum() >= ENOUGH:
                steps, hours = steps[apart <= near], hours[apart <= near]
        if len(steps) > TIMES:  # the last one, and others before it at even distances
            steps = steps[np.linspace(0, len(steps) - 1, TIMES).round().astype(np.int64)]
        return cls(window_box(window), tuple(steps.tolist()))


def guesses(memories: Sequence[Memory | None], questions: Sequence[Question]) -> dict[str, list[Fact | None]]:
    """What each guesser answers to each question.

    Args:
        memories: Of the windows (`remember`).
        questions: The questions.

    Returns:
        Guesser → its spoken answer to each question, None where it has none.
    """
    answers: dict[str, list[Fact | None]] = {name: [] for name in GUESSERS}
    for question in questions:
        memory = memories[question.window]
        for name in GUESSERS:
            answers[name].append(None if memory is None else memory.told[name].get(question.key))
    return answers


def persisted(
    store: TrainingStore, windows: Sequence[Window], questions: Sequence[Question], *, history: int
) -> list[Fact | None]:
    """What was true one time before, spoken; None where the fields begin, or a window is none of theirs.

    Args:
        store: The fields.
        windows: The windows asked about.
        questions: The questions.
        history: Steps of a window.
    """
    kinds = sorted({question.key[0] for question in questions} & EXTRACTORS.keys())
    tables: dict[int, dict[Key, Fact]] = {}
    answers: list[Fact | None] = []
    for question in questions:
        if question.window not in tables:
            window = windows[question.window]
            step = int(np.searchsorted(store.time, window.time[-1]))
            is_of_store = step < len(store.time) and store.time[step] == window.time[-1]
            before = (
                store.window(step - 1, window_box(window), history)
                if is_of_store and step >= history
                else None
            )
            tables[question.window] = {} if before is None else _spoken(extract(before, kinds=kinds))
        answers.append(tables[question.window].get(question.key))
    return answers


def _memory(store: TrainingStore, moment: _Moment, last: int, history: int, kinds: Sequence[str]) -> Memory:
    told: dict[Key, list[Fact]] = {}
    mean = _Mean()
    for step in moment.steps:  # one window at a time: all of them may not fit in memory
        window = store.window(step, moment.box, history)
        mean.add(window.fields)
        # What one time is silent about, another may tell: even fields have no place of extremes.
        for key, fact in _spoken(extract(window, kinds=kinds)).items():
            told.setdefault(key, []).append(fact)
    fields = mean.fields()
    return Memory(
        fields,
        {
            "climatology": _spoken(extract(replace(window, fields=fields), kinds=kinds)),
            "prior": {key: _typical(facts) for key, facts in told.items()},
            "last_training": _spoken(extract(store.window(last, moment.box, history), kinds=kinds)),
        },
    )


class _Mean:
    """Mean over the times at which a cell has a value; NaN where it has none."""

    def __init__(self) -> None:
        self._total: np.ndarray | float = 0.0
        self._count: np.ndarray | int = 0

    def add(self, fields: np.ndarray) -> None:
        valid = np.isfinite(fields)
        self._total = self._total + np.where(valid, fields, 0.0).astype(np.float64)
        self._count = self._count + valid.astype(np.int64)

    def fields(self) -> np.ndarray:
        total, count = np.asarray(self._total), np.asarray(self._count)
        mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        return mean.astype(np.float32)


def _spoken(facts: Sequence[Fact]) -> dict[Key, Fact]:
    return {fact.key: spoken(fact) for fact in facts}


def _typical(facts: Sequence[Fact]) -> Fact:
    """The median where the facts are numbers, else the most frequent."""
    last = facts[-1]
    if FACT_KINDS[last.kind].form == "number":
        middle = float(np.median([float(fact.value) for fact in facts]))  # type: ignore[arg-type]
        return spoken(Fact(last.kind, last.variable, middle, last.qualifiers))
    return Counter(facts).most_common(1)[0][0]
