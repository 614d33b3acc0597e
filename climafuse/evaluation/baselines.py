"""What one can say without looking: guessers that know the place, and what it was like before.

A model that reads the fields must beat them. They are given more than the model is: the exact fields of the
training times at the very place that is asked about.

- climatology: the facts of the mean of the training fields at the place;
- prior: for each fact the median (of numbers) or the most frequent value (of classes, octants, positions) over
  the training times at the place;
- persistence: the facts of the last training time at the place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from climafuse.data.store import TrainingStore
from climafuse.data.window import Box, Window
from climafuse.evaluation.questions import Question
from climafuse.facts import FACT_KINDS, Fact, extract, spoken, window_box

Key = tuple[str, str, tuple[tuple[str, str], ...]]
GUESSERS = ("climatology", "prior", "persistence")


def guesses(
    store: TrainingStore, windows: Sequence[Window], questions: Sequence[Question], *, history: int
) -> dict[str, list[Fact | None]]:
    """What each guesser answers to each question.

    Args:
        store: Fields and splits.
        windows: The windows asked about; only their places are looked at.
        questions: The questions.
        history: Steps of a window.

    Returns:
        Guesser → its spoken answer to each question, None where it has none.
    """
    steps = store.splits.valid_times("train", history=history)
    tables: dict[int, dict[str, dict[Key, Fact]]] = {}
    answers: dict[str, list[Fact | None]] = {name: [] for name in GUESSERS}
    for question in questions:
        if question.window not in tables:
            tables[question.window] = _tables(store, window_box(windows[question.window]), steps, history)
        for name in GUESSERS:
            answers[name].append(tables[question.window][name].get(question.key))
    return answers


def _tables(store: TrainingStore, box: Box, steps: np.ndarray, history: int) -> dict[str, dict[Key, Fact]]:
    past = [store.window(int(step), box, history) for step in steps]
    facts = [_spoken(extract(window)) for window in past]
    # What the last time is silent about, an earlier one may have told: even fields have no place of extremes.
    keys = dict.fromkeys(key for table in facts for key in table)
    return {
        "climatology": _spoken(extract(replace(past[-1], fields=_mean([window.fields for window in past])))),
        "prior": {key: _typical([table[key] for table in facts if key in table]) for key in keys},
        "persistence": facts[-1],
    }


def _mean(fields: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over the times at which a cell has a value; NaN where it has none."""
    stack = np.stack(fields).astype(np.float64)
    valid = np.isfinite(stack)
    count = valid.sum(axis=0)
    total = np.where(valid, stack, 0.0).sum(axis=0)
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
