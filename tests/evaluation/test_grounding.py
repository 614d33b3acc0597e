"""Grounding: a reader that reads, one that does not, and one that remembers are told apart."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from climafuse.data.batch import sample_boxes
from climafuse.data.splits import Splits
from climafuse.data.window import Box
from climafuse.errors import PairsError
from climafuse.evaluation import GUESSERS, Grounding, Question, evaluate_grounding, questions_of
from climafuse.facts import Fact, Statistic, abstention, asked, describe, extract, question_answer, sources
from climafuse.facts import statistic as count
from climafuse.facts.kinds import UNSEEN_NAMES
from tests.evaluation.stores import make_store, random_store
from tests.facts.windows import KELVIN

HISTORY = 2
KINDS = ("mean", "maximum", "minimum", "direction", "change")  # a guess is seldom right


def _where(window):
    return window.time[-1], window.latitude[0], window.longitude[0], len(window.latitude)


def _never_held(prompt):
    """The variable of a question about what no field is known for, such as wave height."""
    return next(variable for variable, name in UNSEEN_NAMES.items() if name in prompt)


class Reader:
    """Says what the fields tell of the fact asked for; where they do not, that they do not."""

    def __init__(self):
        self.calls = []

    def table(self, window):
        return {fact.key: fact for fact in extract(window)}

    def answer(self, windows, prompts, *, index=None):
        self.calls.append((windows, prompts, index))
        answers = []
        for prompt, number in zip(prompts, index, strict=True):
            key = asked(prompt) or (None, _never_held(prompt), ())
            fact = self.table(windows[number]).get(key)
            rng = np.random.default_rng(0)
            answers.append((abstention(key[1], rng) if fact is None else question_answer(fact, rng))[1])
        return answers


class Rememberer(Reader):
    """Knows by heart what the weather was at a place and time, and does not look."""

    def __init__(self, windows):
        super().__init__()
        self.known = {_where(window): {fact.key: fact for fact in extract(window)} for window in windows}

    def table(self, window):
        return self.known[_where(window)]


class Constant(Reader):
    """Says the same whatever it is shown."""

    def __init__(self, window):
        super().__init__()
        self.only = {fact.key: fact for fact in extract(window)}

    def table(self, window):
        return self.only


@pytest.fixture(scope="module")
def asked_about():
    splits = Splits(np.arange(8), np.array([10, 11]), np.arange(13, 30))
    store = random_store(num_times=30, splits=splits)
    steps = store.splits.valid_times("test", history=HISTORY)
    # All on rows and columns that hold the whole box, so that all windows have one shape.
    boxes = sample_boxes(steps, 24, size=(5, 5), seed=1, within=Box(5, 26, 4, 4))
    windows = [store.window(step, box, HISTORY) for step, box in boxes]
    assert len({window.fields.shape for window in windows}) == 1
    pairs = list(describe(enumerate(windows), seed=2, kinds=KINDS, questions_per_window=8, abstentions=0.15))
    questions = questions_of([[p for p in pairs if p.sample == n] for n in range(len(windows))])
    return store, windows, questions


def _evaluate(model, asked_about, **options):
    store, windows, questions = asked_about
    return evaluate_grounding(model, store, windows, questions, history=HISTORY, **options)


def test_who_reads_is_right_on_what_is_shown_and_only_on_that(asked_about):
    result = _evaluate(Reader(), asked_about)
    f1 = result.to_dict()["fact_f1"]
    assert f1["true"] == 1.0
    assert f1["shown"] == 1.0
    assert f1["shuffled"] < 0.4
    assert all(sample.right for sample in result.samples)
    assert result.to_dict()["abstention"]["f1"] == 1.0
    assert result.to_dict()["invented_rate"] == 0.0


def test_who_remembers_the_place_is_found_out(asked_about):
    _, windows, _ = asked_about
    f1 = _evaluate(Rememberer(windows), asked_about).to_dict()["fact_f1"]
    assert f1["true"] == 1.0
    assert f1["shuffled"] == 1.0
    assert f1["shown"] < 0.4


def test_who_does_not_look_scores_alike_whatever_is_shown(asked_about):
    _, windows, _ = asked_about
    f1 = _evaluate(Constant(windows[0]), asked_about).to_dict()["fact_f1"]
    assert 0 < f1["true"] < 0.4
    assert f1["true"] == f1["shuffled"]


def test_nothing_depends_on_how_many_windows_are_asked_about_at_a_time(asked_about):
    one, many = (_evaluate(Reader(), asked_about, windows_per_batch=n) for n in (1, 7))
    assert one.to_dict() == many.to_dict()
    assert [s.answer for s in one.samples] == [s.answer for s in many.samples]


def test_samples_show_question_answer_and_truth_of_one_window(asked_about):
    for sample in _evaluate(Reader(), asked_about).samples:
        assert asked(sample.prompt) == sample.truth.key
        assert sample.truth in extract(sample.window)


def test_what_is_withheld_is_hidden_and_its_abstention_counted(asked_about):
    _, windows, questions = asked_about
    reader = Reader()
    result = _evaluate(reader, asked_about, windows_per_batch=100)
    withheld = {(question.prompt, question.withheld) for question in questions if question.withheld}
    assert withheld
    (views, prompts, index), (swapped, swapped_prompts, _) = reader.calls
    for prompt, row in zip(prompts, index, strict=True):
        missing = set(views[row].variables) - set(views[row].available())
        if missing:
            assert (prompt, tuple(name for name in views[row].variables if name in missing)) in {
                (p, tuple(n for n in views[row].variables if n in w)) for p, w in withheld
            }
            assert set(sources(asked(prompt)[1])) & set(views[row].variables) <= missing
    absent = [question for question in questions if question.key[0] == "absent"]
    assert result.to_dict()["abstention"] == {"num_questions": len(absent), "f1": 1.0}
    # Under swapped values only what can be answered is asked.
    assert len(swapped_prompts) == len(questions) - len(absent)
    assert all(len(view.available()) == len(view.variables) for view in swapped)
    # A reader that always answers, from the fields as they are, abstains never.
    never = _evaluate(Rememberer(windows), asked_about).to_dict()
    assert never["abstention"]["num_questions"] == len(absent)
    assert never["abstention"]["f1"] < 0.5  # right only where the variable was never there


def test_counts_by_hand():
    """Two windows, three questions; one answer right, one wrong, one that says nothing."""
    temperature = np.full((12, 10, 12), KELVIN + 10)
    temperature[11] += 10
    temperature[0, 9, 11] += 1  # outside the box: what never changes cannot be normalized
    store = make_store({"t2m": temperature})
    box = Box(2.5, 22.5, 5, 5)
    windows = [store.window(10, box), store.window(11, box)]  # 10 °C and 20 °C
    mean, maximum = ("mean", "t2m", ()), ("maximum", "t2m", ())
    questions = [
        Question(0, "What is the mean temperature?", mean),
        Question(1, "What is the mean temperature?", mean),
        Question(1, "How high does the temperature get?", maximum),
    ]

    class Ten:
        def answer(self, windows, prompts, *, index=None):
            return ["Mean temperature 10 °C." if "mean" in prompt else "Who knows." for prompt in prompts]

    result = evaluate_grounding(Ten(), store, windows, questions, history=1).to_dict()
    # True: stated 2, right 1 (window 0), referenced 3: precision 1/2, recall 1/3, F1 2/5. Swapped, scored
    # against the original: the same answers, so the same. Shown: window 0 is 20 °C, window 1 is 10 °C: one
    # right again. Guessers: it was 10 °C on all training days, so right, wrong, wrong: 1/3.
    assert result["fact_f1"]["true"] == pytest.approx(2 / 5)
    assert result["fact_f1"]["shuffled"] == pytest.approx(2 / 5)
    assert result["fact_f1"]["shown"] == pytest.approx(2 / 5)
    for name in ("prior", "prior_guesser", "climatology", "persistence"):
        assert result["fact_f1"][name] == pytest.approx(1 / 3)
    assert result["num_questions"] == 3
    assert result["num_windows"] == 2
    assert result["numeric_error"]["true"] == {"mean/t2m": pytest.approx(5.0)}  # (0 + 10) / 2
    assert result["numeric_error"]["persistence"] == {
        "maximum/t2m": pytest.approx(10.0),
        "mean/t2m": pytest.approx(5.0),
    }
    assert result["fact_f1_by_kind"]["mean/t2m"]["true"] == pytest.approx(1 / 2)
    assert result["fact_f1_by_kind"]["maximum/t2m"]["true"] == 0.0
    assert result["abstention"] == {"num_questions": 0, "f1": None}


def _counts(right, wrong):
    truth = Fact("mean", "t2m", 10.0)
    stated = [[Fact("mean", "t2m", 10.0)]] * right + [[Fact("mean", "t2m", 30.0)]] * wrong
    return sum((count(facts, [truth]) for facts in stated), Statistic())


@pytest.mark.parametrize("best", GUESSERS)
def test_prior_is_the_best_of_the_guessers(best):
    conditions = {name: _counts(3, 1) for name in ("true", "shuffled", "shown")}
    conditions |= {name: _counts(2 if name == best else 1, 2 if name == best else 3) for name in GUESSERS}
    result = Grounding(conditions, Statistic(), 4).to_dict()
    assert result["best_guesser"] == best
    assert result["fact_f1"]["prior"] == 0.5
    assert result["fact_f1"]["prior_guesser"] == (0.5 if best == "prior" else 0.25)
    assert result["fact_f1"]["true"] == 0.75


def test_figures_are_json_even_where_nothing_was_asked():
    store = make_store({"t2m": KELVIN + np.arange(12.0)})
    windows = [store.window(10, Box(2.5, 22.5, 5, 5))]  # nobody to swap with
    questions = [Question(0, "What is the mean temperature?", ("mean", "t2m", ()))]
    result = evaluate_grounding(Reader(), store, windows, questions, history=1)
    figures = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(figures) == {
        "fact_f1", "best_guesser", "num_windows", "num_questions", "numeric_error", "fact_f1_by_kind",
        "fact_f1_mean_of_kinds", "invented_rate", "abstention",
    }  # fmt: skip
    assert set(figures["fact_f1"]) == {
        "true",
        "shuffled",
        "shown",
        "prior",
        "prior_guesser",
        "climatology",
        "persistence",
    }
    assert figures["fact_f1"]["true"] == 1.0
    assert figures["fact_f1"]["shuffled"] is None
    assert math.isnan(result.score("shown").f1)


def test_questions_that_nobody_can_answer_are_refused():
    store = make_store({"t2m": KELVIN + np.arange(12.0)})
    questions = [Question(0, "Any wind?", ("absent", "ws10", ()))]
    with pytest.raises(PairsError, match="at least one that asks for one fact"):
        evaluate_grounding(Reader(), store, [store.window(10)], questions, history=1)


def test_progress_covers_both_rounds(asked_about):
    told = []
    _evaluate(Reader(), asked_about, windows_per_batch=10, progress=lambda *counts: told.append(counts))
    assert told == [(10, 48), (20, 48), (24, 48), (34, 48), (44, 48), (48, 48)]


def test_windows_are_not_changed(asked_about):
    _, windows, _ = asked_about
    before = [dataclasses.replace(window, fields=window.fields.copy()) for window in windows]
    _evaluate(Reader(), asked_about)
    assert all(np.array_equal(one.fields, other.fields) for one, other in zip(before, windows, strict=True))


def test_the_mean_over_kinds_counts_every_kind_alike():
    rain = Fact("event", "tp", "yes", (("event", "wet"),))
    # Three right of four about temperature, none of one about rain: 3 of 5, but (3/4 + 0) / 2.
    counts = _counts(3, 1) + count([], [rain])
    result = Grounding(dict.fromkeys(("true", "shuffled", "shown", *GUESSERS), counts), Statistic(), 1)
    assert result.to_dict()["fact_f1_mean_of_kinds"]["true"] == pytest.approx(0.375)
