"""Do the words come from the fields? The same questions under other fields, beside guessers and controls.

`evaluate_grounding` asks everything and counts; `Grounding` holds the counts and makes figures of them: scores by
kind and variable, intervals, differences, the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from climafuse.data.store import TrainingStore
from climafuse.data.window import Window
from climafuse.errors import PairsError
from climafuse.evaluation.asking import Ask, Progress, ReadsClimate, ScoresTexts, TextLikelihood, Transcript
from climafuse.evaluation.baselines import GUESSERS, guesses, persisted, remember
from climafuse.evaluation.correlation import SamplePoints, Scales, field_scales
from climafuse.evaluation.oracle import Oracle
from climafuse.evaluation.polling import count_poll, make_polls
from climafuse.evaluation.questions import FactTables, Key, Question, questions_of, truths
from climafuse.evaluation.statistics import NO_FLOOR, Interval, difference, fact_counts, fact_f1, interval
from climafuse.evaluation.subjects import Subjects, is_told_subjects
from climafuse.evaluation.verdict import CHECKS, Difference, Reading, verdict
from climafuse.evaluation.views import CONDITIONS, View, make_views
from climafuse.facts import (
    Fact,
    Score,
    Statistic,
    abstention,
    agrees,
    answer_to,
    describe,
    metrics,
    parse,
    sources,
    statistic,
    withhold,
)
from climafuse.facts.phrasing import askable
from climafuse.facts.unseen import UNTRAINED_NAMES

REASONS = ("withheld", "masked", "unseen", "untrained")  # why a question has no answer
QUICK = ("true", "swapped")  # views of an evaluation that is not thorough
OTHERS = 100  # questions about what is not withheld, for each variable that is
UNANSWERABLE = 2  # questions without an answer, for each window
LABELS = {name: condition.label for name, condition in CONDITIONS.items()} | {
    "climatology": "guesser: mean field of the training times, same place",
    "prior_guesser": "guesser: median or most frequent fact, same place",
    "last_training": "guesser: last training time, same place",
    "persistence": "forecaster: one time before, same place",
    "oracle": "oracle that writes from the field",
    "text_only": "control: trained alike, sees no field",
    "place_only": "control: trained alike, sees where and when only",
    "regressor": "control: the encoder alone, without a language model",
}
# Beside those of the verdict: what the language model costs, and how far the end is.
OTHER_DIFFERENCES = (("true", "regressor"), ("oracle", "true"))
Stated: TypeAlias = list[list[Fact]]


@dataclass(frozen=True)
class Sample:
    """One answer, for reading.

    Args:
        question: What was asked.
        answer: What the model said.
        truth: The exact fact.
        right: Whether it counts.
        window: The fields.
    """

    question: Question
    answer: str
    truth: Fact
    right: bool
    window: Window

    @property
    def prompt(self) -> str:
        """What was asked, in words."""
        return self.question.prompt


@dataclass(frozen=True)
class Outcome:
    """What came of the questions under one condition, or of one guesser or control.

    Args:
        by_question: Counts of the facts of each answer; None where a question was not asked, or counts for nothing
            because no field tells the answer.
        num_asked: Questions asked.
        num_abstained: Of these, answered that the fields do not hold it.
        num_stated: Facts in the answers.
        num_invented: Of these, about what the field shown does not tell: a value it does not hold, or that it does
            not hold what it does.
        likelihood: Of the right words; None where not measured.
    """

    by_question: Sequence[Statistic | None]
    num_asked: int
    num_abstained: int
    num_stated: int = 0
    num_invented: int = 0
    likelihood: TextLikelihood | None = None

    @cached_property
    def total(self) -> Statistic:
        """Counts of all questions."""
        return sum(filter(None, self.by_question), Statistic())

    @property
    def score(self) -> Score:
        """Metrics of all questions."""
        return metrics(self.total)


@dataclass(frozen=True)
class Grounding:
    """Counts of right and wrong facts under each condition.

    Args:
        windows: The windows asked about.
        questions: The answerable questions.
        telling: Whether the swap of values changes the right answer to each of them.
        outcomes: Condition, guesser or control → its counts, over these questions.
        withheld: Variable, while it is withheld → questions about it and how many of them were answered so; outcome
            of questions about others.
        abstention: Why there is no answer → questions asked, and how many were answered so.
        polls: Strategy → figures of `count_poll`.
        samples: Answers with the true field.
        num_left_out: Questions that were given and not asked: the fields do not tell the answer, or tell what the
            question takes for missing.
        floor: Correlation lengths of the fields, which blocks are at least as long as.
    """

    windows: Sequence[Window]
    questions: Sequence[Question]
    telling: Sequence[bool]
    outcomes: Mapping[str, Outcome]
    withheld: Mapping[str, tuple[tuple[int, int], Outcome]] = field(default_factory=dict)
    abstention: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    polls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    num_left_out: int = 0
    floor: Scales = NO_FLOOR

    @property
    def prior(self) -> str:
        """Name of the best guesser."""
        names = [name for name in GUESSERS if name in self.outcomes]
        return max(names, key=lambda name: self.score(name).f1)

    def score(self, condition: str) -> Score:
        """Metrics of one condition."""
        return self.outcomes[condition].score

    @cached_property
    def _points(self) -> SamplePoints:
        return SamplePoints.of_windows(self.windows)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """Fact F1 of each condition with its interval."""
        return {
            name: interval(self._points, self._counts(outcome.by_question), fact_f1, floor=self.floor)
            for name, outcome in self.outcomes.items()
            if outcome.total.total().referenced
        }

    @cached_property
    def differences(self) -> dict[tuple[str, str], Difference]:
        """Fact F1 of one condition less that of another, on the questions that count for both."""
        return {
            pair: self._difference(*pair) for pair in [*(check.name for check in CHECKS), *OTHER_DIFFERENCES]
        }

    def _difference(self, one: str, other: str, chosen: Sequence[bool] | None = None) -> Difference:
        one, other = (self.prior if name == "prior" else name for name in (one, other))
        first, second = (self._counts(counts) for counts in self._paired(one, other, chosen))
        asked = first[:, -1] > 0
        if not asked.any():
            return Difference(None)
        num_windows = int(asked.sum())
        points = self._points if asked.all() else self._points.subset(asked)
        found = difference(points, first[asked], second[asked], fact_f1, floor=self.floor)
        if not found.claimed or found.low is None or found.high is None:
            return Difference(found.value, num_windows)
        return Difference(found.value, num_windows, (found.low, found.high), found.p)

    def _paired(
        self, one: str, other: str, chosen: Sequence[bool] | None = None
    ) -> tuple[Sequence[Statistic | None], Sequence[Statistic | None]]:
        """Counts of two outcomes, of the questions only that count for both, and are chosen."""
        pairs: list[tuple[Statistic | None, Statistic | None]] = [(None, None)] * len(self.questions)
        if one in self.outcomes and other in self.outcomes:
            both = zip(self.outcomes[one].by_question, self.outcomes[other].by_question, strict=True)
            counted = [True] * len(self.questions) if chosen is None else chosen
            pairs = [
                pair if is_chosen and None not in pair else (None, None)
                for pair, is_chosen in zip(both, counted, strict=True)
            ]
        return [first for first, _ in pairs], [second for _, second in pairs]

    def _counts(self, by_question: Sequence[Statistic | None]) -> np.ndarray:
        """`fact_counts` of each window."""
        by_window = [Statistic()] * len(self.windows)
        for question, counts in zip(self.questions, by_question, strict=True):
            if counts is not None:
                by_window[question.window] += counts
        return fact_counts(by_window)

    @cached_property
    def verdict(self) -> dict[str, Any]:
        """Whether the model is grounded, and the checks."""
        return verdict(
            {
                check.name: self._difference(*check.name, self.telling)
                if check.is_of_swap
                else self.differences[check.name]
                for check in CHECKS
            },
            best_guess=self.score(self.prior).f1,
            variables=self._readings(1),
            kinds=self._readings(0),
        )

    def _readings(self, part: int) -> dict[str, Reading]:
        """How each kind (part 0 of a key) or variable (part 1) is read: swapped values are followed, or not."""
        readings = {}
        for name in dict.fromkeys(question.key[part] for question in self.questions):
            chosen = [
                tells and question.key[part] == name
                for tells, question in zip(self.telling, self.questions, strict=True)
            ]
            pair = self._paired("shown", "shuffled", chosen)
            shown, shuffled = (sum(filter(None, counts), Statistic()) for counts in pair)
            num_questions = sum(counts is not None for counts in pair[0])
            figures = [_number(metrics(counts).f1) for counts in (shown, shuffled)]
            found = self._difference("shown", "shuffled", chosen)
            readings[str(name)] = Reading(num_questions, figures[0], figures[1], found)
        return readings

    def to_dict(self) -> dict[str, Any]:
        """Figures as JSON types; None where nothing was asked.

        Of ``fact_f1``, ``prior`` is the best of the guessers, and ``prior_guesser`` the one of that name.
        """
        names = {("prior_guesser" if name == "prior" else name): name for name in self.outcomes}
        f1 = {shown: _number(self.score(name).f1) for shown, name in names.items()}
        absent = [sum(counts) for counts in zip(*self.abstention.values(), strict=True)] or [0, 0]
        true = self.outcomes["true"]
        return {
            "fact_f1": {name: f1.get(name) for name in LABELS} | f1 | {"prior": f1[_shown(self.prior)]},
            "best_guesser": self.prior,
            "num_windows": len(self.windows),
            "num_questions": self.score("true").num_referenced,
            "num_left_out": self.num_left_out,
            "conditions": {shown: self._condition(name) for shown, name in names.items()},
            "withheld": {
                variable: {
                    "num_questions": asked,
                    "abstained": _share(abstained, asked),
                    "num_others": others.num_asked,
                    "others_f1": _number(others.score.f1),
                    "others": self._figures(others),
                }
                for variable, ((asked, abstained), others) in self.withheld.items()
            },
            "abstention": {
                "num_questions": absent[0],
                "abstained": _share(absent[1], absent[0]),
                "num_answerable": true.num_asked,
                "false_abstentions": _share(true.num_abstained, true.num_asked),
                "by_reason": {
                    reason: {"num_questions": asked, "abstained": _share(right, asked)}
                    for reason, (asked, right) in self.abstention.items()
                },
            },
            "polling": {name: dict(poll) for name, poll in self.polls.items()},
            "intervals": self._trust(),
            "differences": {
                f"{one} - {other}": {
                    "difference": found.value,
                    "interval": None if found.interval is None else list(found.interval),
                    "p": found.p,
                }
                for (one, other), found in self.differences.items()
            },
            "verdict": self.verdict,
        }

    def _condition(self, name: str) -> dict[str, Any]:
        found = self.intervals.get(name)
        return {
            "label": LABELS.get(_shown(name), name),
            "interval": [found.low, found.high] if found is not None and found.claimed else None,
            **self._figures(self.outcomes[name]),
        }

    @staticmethod
    def _figures(outcome: Outcome) -> dict[str, Any]:
        score = outcome.score
        held = [(key, tally) for key, tally in sorted(outcome.total.tallies.items()) if tally.referenced]
        likelihood = outcome.likelihood
        return {
            "precision": _number(score.precision),
            "recall": _number(score.recall),
            "f1": _number(score.f1),
            "num_questions": outcome.num_asked,
            "token_loss": None if likelihood is None else likelihood.nats / likelihood.num_tokens,
            "bits_per_byte": None
            if likelihood is None
            else likelihood.nats / math.log(2) / likelihood.num_bytes,
            "token_accuracy": None if likelihood is None else likelihood.num_right / likelihood.num_tokens,
            "invented_rate": _share(outcome.num_invented, outcome.num_stated),
            "wrong_rate": _number(score.wrong_rate),
            "abstained": _share(outcome.num_abstained, outcome.num_asked),
            "by_kind": {
                kind: _number(metrics(outcome.total.only(kind=kind)).f1)
                for kind in dict.fromkeys(kind for (kind, _), _ in held)
            },
            "by_variable": {
                variable: _number(metrics(outcome.total.only(variable=variable)).f1)
                for variable in dict.fromkeys(variable for (_, variable), _ in held)
            },
            "by_kind_and_variable": {
                f"{kind}/{variable}": _number(metrics(outcome.total.only(kind=kind, variable=variable)).f1)
                for (kind, variable), _ in held
            },
            "num_by_kind_and_variable": {
                f"{kind}/{variable}": tally.referenced for (kind, variable), tally in held
            },
            "numeric_error": dict(score.errors),
            "num_errors": {
                f"{kind}/{variable}": tally.num_errors for (kind, variable), tally in held if tally.num_errors
            },
            "mean_of_kinds": _mean(
                metrics(outcome.total.only(kind=kind, variable=variable)).f1 for (kind, variable), _ in held
            ),
        }

    def _trust(self) -> dict[str, Any]:
        # Blocks differ from figure to figure: those of the first one that has any. Where all answers are right, that of
        # another condition.
        figures = [self.intervals[name] for name in ("true", "shown", "shuffled") if name in self.intervals]
        found = next((figure for figure in figures if figure.claimed), figures[0])
        return {
            "claimed": found.claimed,
            "why": found.why,
            "num_blocks": found.num_blocks,
            "effective_blocks": found.effective_blocks,
            "effective_in_time": found.effective_in_time,
            "effective_in_space": found.effective_in_space,
            "block_hours": _number(found.size.hours),
            "block_kilometers": _number(found.size.kilometers),
            "hours": _number(found.scales.hours),
            "kilometers": _number(found.scales.kilometers),
            "field_hours": _number(self.floor.hours),
            "field_kilometers": _number(self.floor.kilometers),
        }


def evaluate_grounding(
    model: ReadsClimate,
    store: TrainingStore,
    windows: Sequence[Window],
    questions: Sequence[Question],
    *,
    history: int,
    steps: Sequence[int] | None = None,
    training: Iterable[Window] = (),
    controls: Mapping[str, ReadsClimate] | None = None,
    transcript: Callable[[str], Transcript] | None = None,
    seed: int = 0,
    thorough: bool = True,
    progress: Callable[[str], Progress] | None = None,
) -> Grounding:
    """Ask a model the same questions under other fields, beside guessers, the oracle and controls.

    Args:
        model: The model. One with `score` (`ScoresTexts`) is also asked how likely it holds the right words.
        store: Fields and splits, for the guessers.
        windows: Of the test times.
        questions: About them.
        history: Steps of a window.
        steps: Valid times of the split, as steps of the store, for other times at the same place; None for none.
        training: Windows of training, that tell which events are frequent.
        controls: Name → a model that is asked with the true field only: text_only, place_only, regressor, ….
        transcript: Makes the transcript of a model by name ("model", or that of a control), so that an evaluation
            goes on where it was stopped; None keeps nothing.
        seed: Of swaps and of questions made here.
        thorough: False asks with the true and the swapped field only, for a choice between many models.
        progress: Given a stage, returns what is called with how many questions are done and how many there are.

    Raises:
        PairsError: No question asks for a fact.
    """
    tables = FactTables()
    true: View = [*windows]
    told = [
        question
        for question, fact in zip(questions, truths(true, questions, tables), strict=True)
        if fact is not None and (fact.kind != "absent" or not _holds(windows[question.window], question))
    ]
    answerable = [question for question in told if question.key[0] != "absent"]
    if not answerable:
        raise PairsError(
            "questions",
            expected="at least one that asks for one fact which the fields tell",
            received=f"{len(questions)} questions, none of them such",
            remedy="Ask about variables and kinds of fact of these fields: raise test_windows or questions_per_window, "
            "or lower the shares of bulletins and abstentions.",
        )
    kinds = sorted({question.key[0] for question in answerable})
    memories = remember(store, windows, answerable, history=history)
    views = make_views(windows, steps, store, memories, seed=seed)
    conditions = CONDITIONS
    hidden: dict[str, tuple[View, list[Question], list[Question]]] = {}
    unanswerable = [question for question in told if question.key[0] == "absent"]
    polls: dict[str, list[Question]] = {}
    if thorough:
        hidden = _hide(windows, answerable)
        unanswerable += [*_unanswerable(windows, kinds, seed), *_untrained(windows, kinds, seed)]
        polls = make_polls(windows, training, seed=seed) if "event" in kinds else {}
        polls = {strategy: poll for strategy, poll in polls.items() if poll}
    else:
        conditions = {name: row for name, row in CONDITIONS.items() if row.view in QUICK}
        views = {name: view for name, view in views.items() if name in QUICK}

    subjects = Subjects((question.prompt, question.key) for question in told)
    for asked in (model, *(controls or {}).values()):
        if is_told_subjects(asked):
            asked.subjects = subjects
    ask = _Interview(model, transcript("model") if transcript else Transcript())
    for view in views.values():
        ask.add(view, answerable)
    for masked, about, others in hidden.values():
        ask.add(masked, [*about, *others])
    ask.add([*windows], unanswerable)
    for poll in polls.values():
        ask.add([*windows], poll)
    ask.all(progress("questions") if progress else None)

    def count(
        stated: Stated, asked: Sequence[Question], view: View, reference: View, **options: bool
    ) -> Outcome:
        return _count(stated, asked, view, reference, tables, **options)

    outcomes = {
        name: count(
            ask.stated(views[condition.view], answerable),
            answerable,
            views[condition.view],
            views[condition.view] if condition.against_shown else true,
            untold=condition.untold,
        )
        for name, condition in conditions.items()
    }
    real = truths(true, answerable, tables)
    guessed = guesses(memories, answerable)
    guessed["persistence"] = persisted(store, windows, answerable, history=history)
    for name, answers in guessed.items():
        outcomes[name] = count([[fact] if fact else [] for fact in answers], answerable, true, true)
    without = {
        variable: (
            _abstentions(ask.stated(masked, about), about, masked, tables),
            count(ask.stated(masked, others), others, masked, masked),
        )
        for variable, (masked, about, others) in hidden.items()
    }
    if isinstance(model, ScoresTexts):
        scored = {
            name: _worded(answerable, true, views[condition.view], condition.against_shown, tables)
            for name, condition in conditions.items()
        }
        scored |= {
            f"without {variable}": _worded(others, true, masked, True, tables)
            for variable, (masked, _, others) in hidden.items()
        }
        likelihoods = ask.likelihoods(scored, progress("right words") if progress else None)
        outcomes |= {name: replace(outcomes[name], likelihood=likelihoods[name]) for name in conditions}
        without = {
            variable: (about, replace(others, likelihood=likelihoods[f"without {variable}"]))
            for variable, (about, others) in without.items()
        }
    for name, control in {"oracle": Oracle(subjects), **(controls or {})}.items():
        other = _Interview(control, transcript(name) if transcript and name != "oracle" else Transcript())
        other.add(true, answerable)
        other.all(progress(f"questions, {name}") if progress else None)
        outcomes[name] = count(other.stated(true, answerable), answerable, true, true)
        if isinstance(control, ScoresTexts):
            scored = {name: _worded(answerable, true, true, False, tables)}
            likelihood = other.likelihoods(scored, progress(f"right words, {name}") if progress else None)
            outcomes[name] = replace(outcomes[name], likelihood=likelihood[name])

    why = {
        reason: [question for question in unanswerable if _reason(question, windows) == reason]
        for reason in REASONS
    }
    return Grounding(
        windows=windows,
        questions=answerable,
        telling=[
            fact is not None and other is not None and not agrees(other, fact)
            for fact, other in zip(real, truths(views["swapped"], answerable, tables), strict=True)
        ],
        outcomes=outcomes,
        withheld=without,
        abstention={
            reason: _abstentions(ask.stated(true, asked), asked, true, tables)
            for reason, asked in why.items()
            if asked
        },
        polls={
            strategy: count_poll(ask.stated(true, poll), truths(true, poll, tables))
            for strategy, poll in polls.items()
        },
        samples=[
            Sample(
                question,
                text,
                truth,
                _is_right(parse(text, question.prompt, key=question.key), truth),
                windows[question.window],
            )
            for question, text, truth in zip(answerable, ask.texts(true, answerable), real, strict=True)
            if truth is not None
        ],
        num_left_out=len(questions) - len(told),
        floor=field_scales(store),
    )


class _Interview:
    """All questions to one model, asked together: what is asked twice is asked once."""

    def __init__(self, model: ReadsClimate, transcript: Transcript) -> None:
        self._model = model
        self._transcript = transcript
        self._subjects = model.subjects if is_told_subjects(model) else None
        self._asks: list[Ask] = []
        self._hidden: dict[tuple[int, tuple[str, ...]], Window] = {}

    def add(self, view: View, questions: Sequence[Question]) -> None:
        """Have questions asked about the windows of a view."""
        self._asks += self._of(view, questions)

    def all(self, progress: Progress | None) -> None:
        """Ask."""
        self._transcript.answers(self._model, self._asks, progress=progress)

    def texts(self, view: View, questions: Sequence[Question]) -> list[str]:
        """What was answered; "" where the view had nothing to show."""
        asks = self._of(view, questions)
        answers = iter(self._transcript.answers(self._model, asks))
        return ["" if view[question.window] is None else next(answers) for question in questions]

    def stated(self, view: View, questions: Sequence[Question]) -> Stated:
        """The facts in the answers."""
        return [
            parse(text, question.prompt, key=question.key)
            for text, question in zip(self.texts(view, questions), questions, strict=True)
        ]

    def likelihoods(
        self, scored: Mapping[str, Sequence[Ask]], progress: Progress | None
    ) -> dict[str, TextLikelihood | None]:
        """Of the right words of each condition; None where there are none."""
        model = self._model
        assert isinstance(model, ScoresTexts)  # the caller has looked
        flat = [ask for asks in scored.values() for ask in asks]
        found = iter(self._transcript.likelihoods(model, flat, progress=progress))
        sums = {name: sum((next(found) for _ in asks), TextLikelihood()) for name, asks in scored.items()}
        return {name: total if total.num_tokens else None for name, total in sums.items()}

    def _of(self, view: View, questions: Sequence[Question]) -> list[Ask]:
        asks = []
        for question in questions:
            window = view[question.window]
            if window is not None:
                shown = self._without(window, question.withheld)
                subject = () if self._subjects is None else self._subjects[question.prompt]
                asks.append(Ask(shown, question.prompt, subject=subject))
        return asks

    def _without(self, window: Window, withheld: tuple[str, ...]) -> Window:
        """One object for each window and what it lacks: a model encodes it once."""
        if not withheld:
            return window
        return self._hidden.setdefault((id(window), withheld), withhold(window, withheld))


def _hide(
    windows: Sequence[Window], questions: Sequence[Question]
) -> dict[str, tuple[View, list[Question], list[Question]]]:
    """Windows without one variable at a time, questions about what they lack, and about what they do not."""
    hidden = {}
    for variable in dict.fromkeys(question.key[1] for question in questions):
        view: View = [withhold(window, sources(variable)) for window in windows]
        told = truths(view, questions)
        about = [question for question, fact in zip(questions, told, strict=True) if fact is None]
        others = [question for question, fact in zip(questions, told, strict=True) if fact is not None]
        some = np.linspace(0, len(others) - 1, min(OTHERS, len(others))).round().astype(int)
        hidden[variable] = view, about, [others[index] for index in some.tolist()]
    return hidden


def _unanswerable(windows: Sequence[Window], kinds: Sequence[str], seed: int) -> list[Question]:
    """Questions about what is withheld, masked or never there, worded as any other."""
    pairs = describe(
        enumerate(windows), seed=seed, kinds=kinds, questions_per_window=UNANSWERABLE, abstentions=1.0
    )
    groups: list[list[Any]] = [[] for _ in windows]
    for pair in pairs:
        groups[pair.sample].append(pair)
    found = [question for question in questions_of(groups) if question.key[0] == "absent"]
    # What was never there is asked about the window as it is: there, nothing but the name tells.
    return [replace(question, withheld=()) if _is_unseen(question) else question for question in found]


def _untrained(windows: Sequence[Window], kinds: Sequence[str], seed: int) -> list[Question]:
    """One question about each window, for a variable that no text of training asks for."""
    rng = np.random.default_rng(seed)
    known = [name for name in UNTRAINED_NAMES if askable(name, kinds)]
    chosen = rng.choice(known, len(windows)).tolist() if known else []
    texts = [abstention(name, rng, kinds=kinds) for name in chosen]
    return [
        Question(number, prompt, ("absent", name, ()), answer=answer)
        for number, (name, (prompt, answer)) in enumerate(zip(chosen, texts, strict=True))
    ]


def _holds(window: Window, question: Question) -> bool:
    """Whether a field holds what a question takes for missing."""
    return set(sources(question.key[1])) <= _left(window, question)


def _is_unseen(question: Question) -> bool:
    return set(question.withheld).isdisjoint(sources(question.key[1]))


def _reason(question: Question, windows: Sequence[Window]) -> str:
    """Why a question has no answer."""
    if _is_unseen(question):
        return "untrained" if question.key[1] in UNTRAINED_NAMES else "unseen"
    return "masked" if set(question.withheld) >= set(windows[question.window].variables) else "withheld"


def _abstentions(
    stated: Stated, questions: Sequence[Question], view: View, tables: FactTables
) -> tuple[int, int]:
    """Questions without an answer, and how many of them were answered so, with nothing beside it that is not true."""
    right = 0
    for facts, question in zip(stated, questions, strict=True):
        shown = view[question.window]
        held, left = tables.of(shown), _left(shown, question)
        about = {fact.kind for fact in facts if fact.variable == question.key[1]}
        others = [fact for fact in facts if fact.variable != question.key[1]]
        right += about == {"absent"} and all(_is_true(fact, held, left) for fact in others)
    return len(questions), right


def _worded(
    questions: Sequence[Question], windows: View, view: View, against_shown: bool, tables: FactTables
) -> list[Ask]:
    """Each question with the right words: those of its pair, or of the field shown."""
    asks = []
    for question, fact in zip(questions, truths(view, questions, tables), strict=True):
        window = view[question.window]
        answer = (answer_to(question.prompt, fact) if fact else None) if against_shown else question.answer
        if window is not None and answer:
            asks.append(Ask(window, question.prompt, answer))
    return asks


def _count(
    stated: Stated,
    questions: Sequence[Question],
    view: View,
    reference: View,
    tables: FactTables,
    *,
    untold: bool = False,
) -> Outcome:
    """Counts by question.

    A right fact that was not asked for counts for nothing: no answer gets better by what is easy to say. A wrong one
    counts.

    Args:
        stated: Facts in the answers.
        questions: What was asked.
        view: What was shown.
        reference: What the answers are scored against. A fact that was not asked for is judged by it, too.
        tables: Facts of both.
        untold: Count questions, too, which the field shown does not answer; without these, two conditions of one view
            are about the same questions.
    """
    by_question: list[Statistic | None] = []
    num_asked = num_abstained = num_stated = num_invented = 0
    for facts, truth, question in zip(stated, truths(reference, questions, tables), questions, strict=True):
        shown = view[question.window]
        held, left = tables.of(shown), _left(shown, question)
        if shown is None or truth is None or not (untold or question.key in held):
            by_question.append(None)
        else:
            told = tables.of(reference[question.window])
            beside = {fact for fact in facts if fact.key != truth.key and fact.key in told}
            padding = {fact for fact in beside if agrees(fact, told[fact.key])}
            by_question.append(
                statistic([fact for fact in facts if fact not in padding], [truth], support=told.values())
            )
        if shown is not None:
            num_asked += 1
            num_abstained += _abstains(facts)
            num_stated += len(facts)
            num_invented += sum(_is_invented(fact, held, left) for fact in facts)
    return Outcome(by_question, num_asked, num_abstained, num_stated, num_invented)


def _left(shown: Window | None, question: Question) -> set[str]:
    """Variables of a field that were not withheld."""
    return set() if shown is None else set(shown.available()) - set(question.withheld)


def _is_invented(fact: Fact, held: Mapping[Key, Fact], left: set[str]) -> bool:
    """Whether a field does not tell what a fact is about, or tells what it denies.

    Args:
        fact: What was said.
        held: Facts of the field.
        left: Its variables that were not withheld.
    """
    is_there = not left.isdisjoint(sources(fact.variable))
    return is_there if fact.kind == "absent" else not is_there or fact.key not in held


def _is_true(fact: Fact, held: Mapping[Key, Fact], left: set[str]) -> bool:
    """Whether a field tells what a fact says: not invented, and the right value."""
    return not _is_invented(fact, held, left) and (fact.kind == "absent" or agrees(fact, held[fact.key]))


def _abstains(facts: Sequence[Fact]) -> bool:
    return any(fact.kind == "absent" for fact in facts)


def _is_right(stated: Sequence[Fact], truth: Fact) -> bool:
    return statistic(stated, [truth]).total().recalled == 1


def _shown(name: str) -> str:
    return "prior_guesser" if name == "prior" else name


def _number(value: float) -> float | None:
    """A figure for JSON, which has no NaN nor infinity."""
    return value if math.isfinite(value) else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Iterable[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None
