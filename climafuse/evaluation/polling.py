"""Polling: yes or no, with as many right answers of the one as of the other.

A model that says yes to whatever is usual scores well where most answers are yes. Each window is asked about one
event that takes place in it and one that does not. Which one that does not is chosen in three ways, each harder for a
model that answers from habit: at random; the one that is most frequent in training ("popular"); the one that in
training goes most often with the event that does take place ("adversarial"). The share of yes among the answers
tells the habit: half would be right.

Reference:
    Li et al. 2023, Evaluating Object Hallucination in Large Vision-Language Models (POPE), arXiv:2305.10355,
    section 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from climafuse.data.window import Window
from climafuse.evaluation.questions import Question
from climafuse.facts import Fact, extract, question_answer

Qualifiers = tuple[tuple[str, str], ...]
STRATEGIES = ("random", "popular", "adversarial")


def make_polls(
    windows: Sequence[Window], training: Iterable[Window], *, seed: int
) -> dict[str, list[Question]]:
    """Questions about events, half of them to be answered yes.

    Args:
        windows: To be asked about.
        training: Windows that tell which events are frequent and go together.
        seed: Of what is asked, and in which words.

    Returns:
        Strategy → questions in pairs, yes and no; none where no window has both.
    """
    frequent: Counter[Qualifiers] = Counter()
    together: Counter[tuple[Qualifiers, Qualifiers]] = Counter()
    for window in training:
        happening = [fact.qualifiers for fact in _events(window) if fact.value == "yes"]
        frequent.update(happening)
        together.update((one, other) for one in happening for other in happening if one != other)

    random = np.random.default_rng(seed)
    polls: dict[str, list[Question]] = {strategy: [] for strategy in STRATEGIES}
    for number, window in enumerate(windows):
        events = _events(window)
        yes = [fact for fact in events if fact.value == "yes"]
        no = [fact for fact in events if fact.value == "no"]
        if not yes or not no:
            continue
        one = yes[int(random.integers(len(yes)))]
        chosen = {
            "random": no[int(random.integers(len(no)))],
            "popular": max(no, key=lambda fact: frequent[fact.qualifiers]),
            "adversarial": max(
                no, key=lambda fact: (together[one.qualifiers, fact.qualifiers], frequent[fact.qualifiers])
            ),
        }
        for strategy, other in chosen.items():
            for fact in (one, other):
                prompt, answer = question_answer(fact, random)
                polls[strategy].append(Question(number, prompt, fact.key, answer=answer))
    return polls


def count_poll(stated: Sequence[Sequence[Fact]], truths: Sequence[Fact | None]) -> dict[str, Any]:
    """Accuracy of the answers to one poll; precision, recall and F1 of yes.

    Args:
        stated: Facts in each answer.
        truths: The right ones.
    """
    keys = [None if truth is None else truth.key for truth in truths]
    said = [
        next((fact.value for fact in facts if fact.key == key), None)
        for facts, key in zip(stated, keys, strict=True)
    ]
    right = [None if truth is None else truth.value for truth in truths]
    pairs = list(zip(said, right, strict=True))
    yes, found, both = said.count("yes"), right.count("yes"), pairs.count(("yes", "yes"))
    precision, recall = _share(both, yes), _share(both, found)
    f1 = None if precision is None or recall is None else _share(2 * both, yes + found)
    return {
        "num_questions": len(pairs),
        "accuracy": _share(sum(one == other for one, other in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": _share(yes, len(pairs)),
        "unanswered": _share(said.count(None), len(pairs)),
    }


def _events(window: Window) -> list[Fact]:
    return [fact for fact in extract(window, kinds=["event"]) if fact.kind == "event"]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
