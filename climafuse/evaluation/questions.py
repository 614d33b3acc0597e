"""Questions with exact answers: what a model is asked, and what the fields say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from climafuse.data.pairs import Pair
from climafuse.data.window import Window
from climafuse.facts import Fact, asked, extract

Key: TypeAlias = tuple[str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Question:
    """A prompt about one window.

    Args:
        window: Number of the window in the list the questions come with.
        prompt: What is asked.
        key: What the answer is about: kind, variable, qualifiers.
        withheld: Variables hidden from the model; the right answer is then that there are none.
        answer: The words of the right answer, as the pair has them; "" where none are known.
    """

    window: int
    prompt: str
    key: Key
    withheld: tuple[str, ...] = ()
    answer: str = ""


def questions_of(groups: Iterable[Sequence[Pair]]) -> list[Question]:
    """Questions of pairs that state one fact each, or that none is known of and whose prompt asks for one.

    Texts of several facts are no question: which of them ought to be told is not in the prompt.

    Args:
        groups: The pairs of each window, in the order of the windows.
    """
    questions = []
    for number, pairs in enumerate(groups):
        for pair in pairs:
            key = asked(pair.prompt) if not pair.facts else None
            if len(pair.facts) == 1:
                key = Fact.from_dict(pair.facts[0]).key
            if key is not None:
                questions.append(Question(number, pair.prompt, key, pair.withheld, pair.text))
    return questions


class FactTables:
    """The exact facts of windows, each extracted once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Window, dict[Key, Fact]]] = {}

    def of(self, window: Window | None) -> dict[Key, Fact]:
        """Facts by what they are about; none where there is no window."""
        if window is None:
            return {}
        # The window is kept beside its facts: as long as it lives, nothing else has its number.
        if id(window) not in self._known:
            self._known[id(window)] = window, {fact.key: fact for fact in extract(window)}
        return self._known[id(window)][1]


def truths(
    windows: Sequence[Window | None], questions: Sequence[Question], tables: FactTables | None = None
) -> list[Fact | None]:
    """The exact answer to each question, computed from the fields; None where they have none.

    Args:
        windows: The fields; None for what is not shown.
        questions: About them.
        tables: Facts of windows that were extracted before.
    """
    tables = tables or FactTables()
    return [
        Fact("absent", question.key[1], "absent")
        if question.key[0] == "absent"
        else tables.of(windows[question.window]).get(question.key)
        for question in questions
    ]
