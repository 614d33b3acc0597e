"""The oracle writes what the fields say: what a model would score that read and wrote without error.

It is not 1 by definition: spoken values are rounded, and words are parsed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from climafuse.data.window import Window
from climafuse.evaluation.subjects import Subjects
from climafuse.facts import Fact, abstention, answer_to, extract, question_answer
from climafuse.facts.parse import Key


class Oracle:
    """Answers questions from the fields themselves, through the same words.

    Args:
        subjects: What the questions ask for, where their words are not our own.
    """

    def __init__(self, subjects: Subjects | None = None) -> None:
        self.subjects = subjects or Subjects()

    def answer(
        self, windows: Sequence[Window], prompts: Sequence[str], *, index: Sequence[int] | None = None
    ) -> list[str]:
        """Answer N prompts; see `ReadsClimate`."""
        tables = [{fact.key: fact for fact in extract(window)} for window in windows]
        return [
            " ".join(_answer(tables[number], prompt, key) for key in self.subjects[prompt])
            for prompt, number in zip(prompts, range(len(prompts)) if index is None else index, strict=True)
        ]


def _answer(held: Mapping[Key, Fact], prompt: str, key: Key) -> str:
    """In the words that go with the prompt, or else in full."""
    fact = held.get(key, Fact("absent", key[1], "absent"))
    return answer_to(prompt, fact) or in_words(fact)


def in_words(fact: Fact) -> str:
    """A fact in the first words that come to mind; any of them are read back as the same."""
    rng = np.random.default_rng(0)
    return (abstention(fact.variable, rng) if fact.kind == "absent" else question_answer(fact, rng))[1]
