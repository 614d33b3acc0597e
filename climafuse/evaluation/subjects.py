"""What questions ask for: as their pairs declare it, or else as their words have it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeGuard

from climafuse.facts import asked
from climafuse.facts.parse import Key, named


class Subjects:
    """What is asked for in the words of a question, whoever made them.

    A model is given words only. Whoever answers from facts must know which fact they mean: of our own wordings that can
    be read, of others it is what was declared of them.

    Args:
        declared: Prompts, and what one question of those words asks for.
    """

    def __init__(self, declared: Iterable[tuple[str, Key]] = ()) -> None:
        self._declared: dict[str, set[Key]] = {}
        self._read: dict[str, tuple[Key, ...]] = {}
        for prompt, key in declared:
            self.declare(prompt, key)

    def declare(self, prompt: str, key: Key) -> None:
        """Have a prompt ask for something."""
        self._declared.setdefault(prompt, set()).add(key)
        self._read.pop(prompt, None)

    def __getitem__(self, prompt: str) -> tuple[Key, ...]:
        """What a prompt asks for, in a fixed order.

        Where the same words are declared to ask for several things, it is all of these. That something is absent is an
        answer more than a question, and counts where nothing tells which value was asked for. Of a variable that is
        known by its name only, a question asks for its absence; other texts ask for nothing.
        """
        if prompt not in self._read:
            self._read[prompt] = self._of(prompt)
        return self._read[prompt]

    def _of(self, prompt: str) -> tuple[Key, ...]:
        declared = sorted(self._declared.get(prompt, ()))
        if values := tuple(key for key in declared if key[0] != "absent"):
            return values
        if (key := asked(prompt)) is not None:
            return (key,)
        if declared:
            return tuple(declared)
        variable = named(prompt)
        return () if variable is None else (("absent", variable, ()),)


class IsToldSubjects(Protocol):
    """What answers from facts, and is told what the questions of an evaluation ask for."""

    subjects: Subjects


def is_told_subjects(model: object) -> TypeGuard[IsToldSubjects]:
    """Whether a model is one of these; others may have something of that name that is their own."""
    return isinstance(getattr(model, "subjects", None), Subjects)
