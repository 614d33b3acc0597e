"""Questions with exact answers: what a model is asked, and what the fields say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from climafuse.data.pairs import Pair
from climafuse.data.window import Window
from climafuse.facts import Fact, extract


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
    key: tuple[str, str, tuple[tuple[str, str], ...]]
    withheld: tuple[str, ...] = ()
    answer: str = ""


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
                questions.append(Question(number, pair.prompt, fact.key, pair.withheld, pair.text))
    return questions


def truths(windows: Sequence[Window | None], questions: Sequence[Question]) -> list[Fact | None]:
    """The exact answer to each question, computed from the fields; None where they have none.

    Args:
        windows: The fields; None for what is not shown.
        questions: About them.
    """
    tables: dict[int, dict[tuple[str, str, tuple[tuple[str, str], ...]], Fact]] = {}
    answers: list[Fact | None] = []
    for question in questions:
        if question.key[0] == "absent":
            answers.append(Fact("absent", question.key[1], "absent"))
            continue
        if question.window not in tables:
            window = windows[question.window]
            facts = [] if window is None else extract(window)
            tables[question.window] = {fact.key: fact for fact in facts}
        answers.append(tables[question.window].get(question.key))
    return answers
