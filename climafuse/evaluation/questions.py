"""Questions with exact answers: what a model is asked, and what the fields say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from climafuse.data.pairs import Pair
from climafuse.data.window import Window
from climafuse.facts import Fact, extract, withhold


@dataclass(frozen=True)
class Question:
    """A prompt about one window.

    Args:
        window: Number of the window in the list the questions come with.
        prompt: What is asked.
        key: What the answer is about: kind, variable, qualifiers.
        withheld: Variables hidden from the model; the right answer is then that there are none.
    """

    window: int
    prompt: str
    key: tuple[str, str, tuple[tuple[str, str], ...]]
    withheld: tuple[str, ...] = ()


def questions_of(groups: Iterable[Sequence[Pair]]) -> list[Question]:
    """Questions of pairs that state one fact each.

    Args:
        groups: The pairs of each window, in the order of the windows.
    """
    questions = []
    for number, pairs in enumerate(groups):
        for pair in pairs:
            if len(pair.facts) == 1:
                fact = Fact.from_dict(pair.facts[0])
                questions.append(Question(number, pair.prompt, fact.key, pair.withheld))
    return questions


def shown(windows: Sequence[Window], questions: Sequence[Question]) -> tuple[list[Window], list[int]]:
    """The windows as the questions let them be seen: without what is withheld.

    Returns:
        Windows, each once; for each question the number of its window among them.
    """
    rows: dict[tuple[int, tuple[str, ...]], int] = {}
    for question in questions:
        rows.setdefault((question.window, question.withheld), len(rows))
    views = [withhold(windows[number], withheld) for number, withheld in rows]
    return views, [rows[question.window, question.withheld] for question in questions]


def truths(windows: Sequence[Window], questions: Sequence[Question]) -> list[Fact | None]:
    """The exact answer to each question, computed from the fields; None where they have none."""
    tables: dict[int, dict[tuple[str, str, tuple[tuple[str, str], ...]], Fact]] = {}
    answers: list[Fact | None] = []
    for question in questions:
        if question.key[0] == "absent":
            answers.append(Fact("absent", question.key[1], "absent"))
            continue
        if question.window not in tables:
            tables[question.window] = {fact.key: fact for fact in extract(windows[question.window])}
        answers.append(tables[question.window].get(question.key))
    return answers


def swap_values(windows: Sequence[Window], *, seed: int) -> tuple[list[Window], list[int | None]]:
    """Give each window the field values of another; place, time and grid stay.

    If the words come from the fields, the answers must follow the values. If they come from what a model
    remembers of a place and a season, they do not change.

    Args:
        windows: The windows.
        seed: Of who gets whose.

    Returns:
        Windows in the same order; whose values each has, None (and its own) where no other window has its
        shape.
    """
    shapes: dict[tuple[int, ...], list[int]] = {}
    for number, window in enumerate(windows):
        shapes.setdefault(window.fields.shape, []).append(number)
    donor: list[int | None] = [None] * len(windows)
    random = np.random.default_rng(seed)
    for members in shapes.values():
        if len(members) > 1:
            ring = random.permutation(members)  # each takes from the next: nobody keeps its own
            for here, there in zip(ring.tolist(), np.roll(ring, -1).tolist(), strict=True):
                donor[here] = there
    swapped = [
        window if source is None else replace(window, fields=windows[source].fields)
        for window, source in zip(windows, donor, strict=True)
    ]
    return swapped, donor
