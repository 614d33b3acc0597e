"""What one can say without looking: guessers that know the place, and what it was like before.

A model that reads the fields must beat them. They are given more than the model is: the exact fields of the
training times at the very place that is asked about.

- climatology: the facts of the mean of the training fields at the place;
- prior: for each fact the median (of numbers) or the most frequent value (of classes, octants, positions) over
  the training times at the place;
- last_training: the facts of the last training time at the place.

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


@dataclass(frozen=True)
class Memory:
    """What was seen at one place in training.

    Args:
        mean: Mean of the training fields there, [T, V, H, W] with the history of a window.
        told: Guesser → its answers.
    """

    mean: np.ndarray
    told: Mapping[str, Mapping[Key, Fact]]


def remember(
    store: TrainingStore, windows: Sequence[Window], questions: Sequence[Question], *, history: int
) -> dict[Box, Memory]:
    """What was seen in training at the places that are asked about.

    Args:
        store: Fields and splits.
        windows: The windows asked about; only their places are looked at.
        questions: The questions.
        history: Steps of a window.

    Returns:
        Place → what was seen there.
    """
    steps = store.splits.valid_times("train", history=history)
    if len(steps) > TIMES:  # the last one, and others before it at even distances
        steps = steps[np.linspace(0, len(steps) - 1, TIMES).round().astype(np.int64)]
    kinds: dict[Box, set[str]] = {}  # of the questions about a place: the facts of no other kind are needed
    for question in questions:
        if question.key[0] in EXTRACTORS:
            kinds.setdefault(window_box(windows[question.window]), set()).add(question.key[0])
    return {box: _memory(store, box, steps, history, sorted(names)) for box, names in kinds.items()}


def guesses(
    memories: Mapping[Box, Memory], windows: Sequence[Window], questions: Sequence[Question]
) -> dict[str, list[Fact | None]]:
    """What each guesser answers to each question.

    Args:
        memories: Of the places of the windows (`remember`).
        windows: The windows asked about.
        questions: The questions.

    Returns:
        Guesser → its spoken answer to each question, None where it has none.
    """
    answers: dict[str, list[Fact | None]] = {name: [] for name in GUESSERS}
    for question in questions:
        memory = memories.get(window_box(windows[question.window]))
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


def _memory(store: TrainingStore, box: Box, steps: np.ndarray, history: int, kinds: Sequence[str]) -> Memory:
    told: dict[Key, list[Fact]] = {}
    mean = _Mean()
    for step in steps:  # one window at a time: all of them may not fit in memory
        window = store.window(int(step), box, history)
        mean.add(window.fields)
        last = _spoken(extract(window, kinds=kinds))
        # What the last time is silent about, an earlier one may have told: even fields have no place of extremes.
        for key, fact in last.items():
            told.setdefault(key, []).append(fact)
    fields = mean.fields()
    return Memory(
        fields,
        {
            "climatology": _spoken(extract(replace(window, fields=fields), kinds=kinds)),
            "prior": {key: _typical(facts) for key, facts in told.items()},
            "last_training": last,
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
