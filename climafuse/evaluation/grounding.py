"""Does the model read the fields? The same questions under the true field and under swapped values.

- true: the field as it is.
- shuffled: values of another window in its place, time and grid; scored against the facts of the *original*.
- shown: the same answers scored against the facts of the field actually shown.

A model that reads scores high on true and shown and no better than the guessers on shuffled. One that remembers
places scores alike on true and shuffled, and low on shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from climafuse.data.store import TrainingStore
from climafuse.data.window import Window
from climafuse.errors import PairsError
from climafuse.evaluation.baselines import GUESSERS, guesses
from climafuse.evaluation.questions import Question, shown, swap_values, truths
from climafuse.facts import Fact, Score, Statistic, metrics, parse, statistic


class ReadsClimate(Protocol):
    """Any model that answers prompts about windows: fields and prompt in, text out."""

    def answer(
        self, windows: Sequence[Window], prompts: Sequence[str], *, index: Sequence[int] | None = None
    ) -> list[str]:
        """Answer N prompts, each about the window that `index` tells."""
        ...


@dataclass(frozen=True)
class Sample:
    """One answer, for reading.

    Args:
        prompt: What was asked.
        answer: What the model said.
        truth: The exact fact.
        right: Whether it counts.
        window: The fields.
    """

    prompt: str
    answer: str
    truth: Fact
    right: bool
    window: Window


@dataclass(frozen=True)
class Grounding:
    """Counts of right and wrong facts under each condition.

    Args:
        conditions: Condition or guesser → counts over the answerable questions.
        abstention: Counts over the questions about what is withheld, with the true field.
        num_windows: How many windows were asked about.
        samples: Answers with the true field.
    """

    conditions: dict[str, Statistic]
    abstention: Statistic
    num_windows: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def prior(self) -> str:
        """Name of the best guesser."""
        return max(GUESSERS, key=lambda name: metrics(self.conditions[name]).f1)

    def score(self, condition: str) -> Score:
        """Metrics of one condition."""
        return metrics(self.conditions[condition])

    def to_dict(self) -> dict[str, Any]:
        """Figures as JSON types; None where nothing was asked.

        Of ``fact_f1``, ``prior`` is the best of the guessers, and ``prior_guesser`` the one of that name.
        """
        names = list(self.conditions)
        f1 = {name: _number(self.score(name).f1) for name in names}
        f1["prior_guesser"] = f1["prior"]
        f1["prior"] = _number(self.score(self.prior).f1)
        by_kind = {
            f"{kind}/{variable}": {
                name: _number(metrics(self.conditions[name].only(kind=kind, variable=variable)).f1)
                for name in names
            }
            for (kind, variable), tally in sorted(self.conditions["true"].tallies.items())
            if tally.referenced
        }
        return {
            "fact_f1": f1,
            "best_guesser": self.prior,
            "num_windows": self.num_windows,
            "num_questions": self.score("true").num_referenced,
            "numeric_error": {name: dict(self.score(name).errors) for name in names},
            "fact_f1_by_kind": by_kind,
            # Whatever the mix of questions: every kind of every variable counts alike.
            "fact_f1_mean_of_kinds": {name: _mean(row[name] for row in by_kind.values()) for name in names},
            "invented_rate": _number(self.score("true").invented_rate),
            "abstention": {
                "num_questions": metrics(self.abstention).num_referenced,
                "f1": _number(metrics(self.abstention).f1),
            },
        }


def evaluate_grounding(
    model: ReadsClimate,
    store: TrainingStore,
    windows: Sequence[Window],
    questions: Sequence[Question],
    *,
    history: int,
    seed: int = 0,
    windows_per_batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Grounding:
    """Ask a model the same questions under the true field and under swapped values, beside the guessers.

    Args:
        model: The model.
        store: Fields and splits, for the guessers.
        windows: Of the test times.
        questions: About them.
        history: Steps of a window.
        seed: Of the swap.
        windows_per_batch: Windows asked about at a time.
        progress: Called with how many windows are done and how many there are.

    Raises:
        PairsError: No question asks for a fact.
    """
    answerable = [question for question in questions if question.key[0] != "absent"]
    if not answerable:
        raise PairsError(
            "questions",
            expected="at least one that asks for one fact of the fields",
            received=f"{len(questions)} questions, none of them such",
            remedy="Raise test_windows or questions_per_window, or lower the shares of bulletins and abstentions.",
        )
    absent = [question for question in questions if question.key[0] == "absent"]
    swapped, donor = swap_values(windows, seed=seed)
    exchanged = [question for question in answerable if donor[question.window] is not None]
    total = 2 * len(windows)

    def ask(views: Sequence[Window], asked: Sequence[Question], done: int) -> list[list[Fact]]:
        texts = _ask(model, views, asked, windows_per_batch, lambda n: progress and progress(done + n, total))
        said.extend(texts)
        return [parse(text, question.prompt) for text, question in zip(texts, asked, strict=True)]

    said: list[str] = []
    stated = ask(windows, [*answerable, *absent], 0)
    real = truths(windows, answerable)
    conditions = {"true": _count(stated[: len(answerable)], real)}
    samples = [
        Sample(question.prompt, text, truth, _is_right(facts, truth), windows[question.window])
        for question, text, facts, truth in zip(answerable, said, stated, real, strict=False)
        if truth is not None
    ]
    under_swap = ask(swapped, exchanged, len(windows))
    conditions["shuffled"] = _count(under_swap, truths(windows, exchanged))
    conditions["shown"] = _count(under_swap, truths(swapped, exchanged))
    for name, answers in guesses(store, windows, answerable, history=history).items():
        conditions[name] = _count([[fact] if fact else [] for fact in answers], real)
    return Grounding(
        conditions=conditions,
        abstention=_count(stated[len(answerable) :], truths(windows, absent)),
        num_windows=len(windows),
        samples=samples,
    )


def _ask(
    model: ReadsClimate,
    windows: Sequence[Window],
    questions: Sequence[Question],
    windows_per_batch: int,
    progress: Callable[[int], Any],
) -> list[str]:
    """Answers in the order of the questions, asked window by window."""
    order = sorted(range(len(questions)), key=lambda number: questions[number].window)
    texts: dict[int, str] = {}
    for first in range(0, len(windows), windows_per_batch):
        part = [n for n in order if first <= questions[n].window < first + windows_per_batch]
        if part:
            asked = [questions[number] for number in part]
            views, index = shown(windows, asked)
            answers = model.answer(views, [question.prompt for question in asked], index=index)
            texts.update(zip(part, answers, strict=True))
        progress(min(first + windows_per_batch, len(windows)))
    return [texts[number] for number in range(len(questions))]


def _count(stated: Sequence[Sequence[Fact]], real: Sequence[Fact | None]) -> Statistic:
    """Counts over questions; a question that the fields have no answer to any more is left out."""
    return sum(
        (statistic(facts, [truth]) for facts, truth in zip(stated, real, strict=True) if truth is not None),
        Statistic(),
    )


def _number(value: float) -> float | None:
    """A figure for JSON, which has no NaN."""
    return None if math.isnan(value) else value


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _is_right(stated: Sequence[Fact], truth: Fact) -> bool:
    return statistic(stated, [truth]).total().recalled == 1
