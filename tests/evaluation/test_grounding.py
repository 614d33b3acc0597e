"""Grounding: a reader that reads, one that does not, and one that remembers are told apart."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from climafuse.data.batch import sample_boxes
from climafuse.data.splits import Splits
from climafuse.data.window import Box
from climafuse.errors import PairsError
from climafuse.evaluation import (
    GUESSERS,
    Grounding,
    Oracle,
    Outcome,
    Question,
    Transcript,
    asking,
    evaluate_grounding,
    questions_of,
)
from climafuse.evaluation.baselines import persisted
from climafuse.evaluation.correlation import Scales, field_scales
from climafuse.evaluation.verdict import FEWEST
from climafuse.facts import (
    Fact,
    abstention,
    asked,
    describe,
    extract,
    question_answer,
    sources,
    spoken,
    window_box,
)
from climafuse.facts import statistic as count
from climafuse.facts.kinds import name_of
from climafuse.facts.phrasing import ABSENCES, NAMED_ABSENCES
from climafuse.facts.unseen import UNSEEN_NAMES
from tests.evaluation.stores import make_store, random_store
from tests.facts.windows import KELVIN

HISTORY = 2
KINDS = ("mean", "maximum", "minimum", "direction", "change")  # a guess is seldom right


def _where(window):
    return window.time[-1], window.latitude[0], window.longitude[0], len(window.latitude)


def _never_held(prompt):
    """The variable of a question about what no field is known for, such as wave height."""
    return max((variable for variable, name in UNSEEN_NAMES.items() if name in prompt), key=len)


class Reader:
    """Says what the fields tell of the fact asked for; where they do not, that they do not."""

    def __init__(self):
        self.calls = []

    def table(self, window):
        return {fact.key: fact for fact in extract(window)}

    def answer(self, windows, prompts, *, index=None):
        self.calls.append((windows, prompts, index))
        answers = []
        tables = {number: self.table(windows[number]) for number in set(index)}
        for prompt, number in zip(prompts, index, strict=True):
            key = asked(prompt) or (None, _never_held(prompt), ())
            fact = tables[number].get(key)
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


@pytest.fixture(scope="module")
def reading(asked_about):
    """What is found of who reads; asked once for all tests that only look at it."""
    return _evaluate(Reader(), asked_about)


@pytest.fixture(scope="module")
def remembering(asked_about):
    return _evaluate(Rememberer(asked_about[1]), asked_about)


@pytest.fixture(scope="module")
def not_looking(asked_about):
    return _evaluate(Constant(asked_about[1][0]), asked_about)


def test_who_reads_is_right_on_what_is_shown_and_only_on_that(reading):
    result = reading
    f1 = result.to_dict()["fact_f1"]
    assert f1["true"] == 1.0
    assert f1["shown"] == 1.0
    assert f1["shuffled"] < 0.4
    assert all(sample.right for sample in result.samples)
    assert result.to_dict()["conditions"]["true"]["invented_rate"] == 0.0


def test_who_remembers_the_place_is_found_out(remembering):
    f1 = remembering.to_dict()["fact_f1"]
    assert f1["true"] == 1.0
    assert f1["shuffled"] == 1.0
    assert f1["shown"] < 0.4


def test_who_does_not_look_scores_alike_whatever_is_shown(not_looking):
    f1 = not_looking.to_dict()["fact_f1"]
    assert 0 < f1["true"] < 0.4
    assert f1["true"] == f1["shuffled"]


def test_samples_show_question_answer_and_truth_of_one_window(reading):
    for sample in reading.samples:
        assert asked(sample.prompt) == sample.truth.key
        assert sample.truth in extract(sample.window)


def test_what_is_withheld_is_hidden_and_its_abstention_counted(asked_about, reading, remembering):
    _, _, questions = asked_about
    result = reading.to_dict()
    given = [question for question in questions if question.key[0] == "absent"]
    abstention = result["abstention"]
    assert abstention["num_questions"] > len(given) > 0
    assert set(abstention["by_reason"]) == {"withheld", "masked", "unseen", "untrained"}
    assert abstention["by_reason"]["untrained"] == {"num_questions": len(asked_about[1]), "abstained": 1.0}
    assert abstention["abstained"] == 1.0
    assert abstention["false_abstentions"] == 0.0
    # While one variable is withheld: that and what is made of it cannot be told, all else as before.
    assert set(result["withheld"]) == {
        question.key[1] for question in questions if question.key[0] != "absent"
    }
    for variable, row in result["withheld"].items():
        assert row["abstained"] == 1.0, variable
        assert row["others_f1"] == 1.0, variable
        about = sum(
            bool(set(sources(variable)) & set(sources(question.key[1]))) and question.key[0] != "absent"
            for question in questions
        )
        assert row["num_questions"] == about, variable
    # A reader that always answers, from the fields as they are, abstains only where the variable was never there.
    never = remembering.to_dict()
    assert never["abstention"]["by_reason"]["withheld"]["abstained"] == 0.0
    assert never["abstention"]["by_reason"]["masked"]["abstained"] == 0.0
    assert never["abstention"]["by_reason"]["unseen"]["abstained"] == 1.0
    assert never["conditions"]["blank"]["f1"] == 1.0


def test_blank_fields_tell_nothing(reading):
    blank = reading.to_dict()["conditions"]["blank"]
    assert blank["abstained"] == 1.0
    assert blank["f1"] == 0.0
    assert blank["invented_rate"] == 0.0  # "no temperature" is true of what was shown


def test_the_mean_field_of_training_is_what_one_guesser_knows(reading):
    result = reading.to_dict()
    assert result["fact_f1"]["mean_field"] == result["fact_f1"]["climatology"]
    assert 0 < result["fact_f1"]["mean_field"] < 0.5


def test_another_time_at_the_place_is_another_field(asked_about, reading):
    store, _, _ = asked_about
    steps = store.splits.valid_times("test", history=HISTORY).tolist()
    f1 = _evaluate(Reader(), asked_about, steps=steps).to_dict()["fact_f1"]
    assert f1["other_time_shown"] == 1.0
    assert 0 < f1["other_time"] < 0.5
    without = reading.to_dict()
    assert without["fact_f1"]["other_time"] is None


def test_controls_are_asked_with_the_true_field_only(asked_about):
    _, windows, _ = asked_about
    control = Constant(windows[0])
    result = _evaluate(Reader(), asked_about, controls={"text_only": control}).to_dict()
    true = {_where(window): window.fields for window in windows}
    for called, _, _ in control.calls:
        for window in called:  # some without a variable, as their questions want it
            seen = np.isfinite(window.fields)
            assert np.array_equal(window.fields[seen], true[_where(window)][seen])
            assert seen.any()
    assert 0 < result["fact_f1"]["text_only"] < 0.4
    assert result["fact_f1"]["place_only"] is None
    assert result["fact_f1"]["oracle"] == 1.0


def test_who_reads_is_called_grounded_and_who_does_not_is_not(reading, remembering, not_looking):
    assert reading.verdict["grounded"]
    for other in (remembering, not_looking):
        found = other.verdict
        assert not found["grounded"]
        assert any(row["passed"] is False for row in found["checks"])


@pytest.mark.parametrize("num_asked", [FEWEST - 1, FEWEST])
def test_windows_that_no_question_is_about_tell_nothing(num_asked, asked_about):
    """Of 24 windows, those are counted that a question is about; one of them has few of a variable."""
    store, windows, questions = asked_about
    few = [question for question in questions if question.window < num_asked]
    result = _evaluate(Constant(windows[0]), (store, windows, few))
    assert (result.verdict["grounded"] is None) == (num_asked < FEWEST)


class ReadsButFor(Reader):
    """Reads, but for one kind or variable: of that, it says the same whatever it is shown."""

    def __init__(self, window, *ignored):
        super().__init__()
        self.always = {fact.key: fact for fact in extract(window)}
        self.ignored = ignored

    def table(self, window):
        return {
            key: fact if set(self.ignored).isdisjoint(key[:2]) else self.always.get(key, fact)
            for key, fact in super().table(window).items()
        }


@pytest.mark.parametrize(("what", "ignored"), [("kinds", "maximum"), ("variables", "msl")])
def test_what_is_read_does_not_hide_what_is_not(what, ignored, asked_about):
    """Of most questions the answers follow the field, so that all checks pass."""
    found = _evaluate(ReadsButFor(asked_about[1][0], ignored), asked_about).verdict
    assert all(row["passed"] is not False for row in found["checks"])
    assert found["grounded"] is not True
    assert [name for name, row in found[what].items() if not row["read"]] == [ignored]


def test_a_reader_reads_what_seldom_changes():
    """Most swaps change no answer about rain where it is dry: those that do tell, and the rest say nothing."""
    rng = np.random.default_rng(0)
    shape = (60, 10, 12)
    wet = np.zeros(60)
    wet[[3, 11, 45, 49, 53, 57]] = 0.002
    fields = {
        "t2m": 290 + 8 * rng.standard_normal((60, 1, 1)) + rng.standard_normal(shape),
        "tp": wet[:, None, None] * rng.uniform(1, 2, shape),
    }
    splits = Splits(np.arange(20), np.arange(24, 30), np.arange(36, 60))
    store = make_store(fields, splits=splits)
    windows = [
        store.window(step, box, 2)
        for step, box in sample_boxes(
            store.splits.valid_times("test", history=2), 40, size=(5, 5), seed=1, within=Box(5, 26, 4, 4)
        )
    ]
    questions = [
        Question(number, prompt, key)
        for number in range(len(windows))
        for prompt, key in [
            ("What is the mean temperature?", ("mean", "t2m", ())),
            ("What is the mean precipitation?", ("mean", "tp", ())),
        ]
    ]
    found = evaluate_grounding(Reader(), store, windows, questions, history=2).verdict
    rain = found["variables"]["tp"]
    assert 0 < rain["num_questions"] < len(windows) / 2
    assert rain["shown"] == 1.0
    assert rain["shuffled"] == 0.0
    assert rain["read"] in (True, None)
    assert found["grounded"] is not False


def _frost(num_cold):
    """Whether there is frost in 40 windows, of which a number are cold at one place, the same at all times."""
    cold = np.arange(24) < 12
    level = np.where(cold, 263.0, 293.0) + np.random.default_rng(0).normal(0, 1, (60, 10, 24))
    splits = Splits(np.arange(20), np.arange(24, 30), np.arange(36, 60))
    store = make_store({"t2m": level}, splits=splits, longitude=np.arange(20.0, 44.0))
    places = [Box(4.5, 25, 5, 5)] * num_cold + [Box(4.5, 38, 5, 5)] * (40 - num_cold)
    windows = [store.window(37 + number % 22, place, 2) for number, place in enumerate(places)]
    key = ("event", "t2m", (("event", "freezing"),))
    questions = [Question(number, "Is there any frost?", key) for number in range(len(windows))]
    return store, windows, questions


@pytest.mark.parametrize(("num_cold", "too_few"), [(20, False), (0, True)])
def test_a_reader_of_easy_questions_is_not_called_one_that_does_not_look(num_cold, too_few):
    """Who knows the place is always right: nobody can be better. Where all places are alike, no swap tells, either."""
    store, windows, questions = _frost(num_cold)
    found = evaluate_grounding(Oracle(), store, windows, questions, history=2)
    assert found.score("true").f1 == found.score(found.prior).f1 == 1.0
    assert any(found.telling) is not too_few
    told = found.verdict
    assert told["grounded"] is None
    assert "too easy questions" in told["words"]
    assert ("too few questions whose answer a swap changes" in told["words"]) is too_few
    blind = evaluate_grounding(Rememberer(windows), store, windows, questions, history=2)
    assert blind.verdict["grounded"] is (None if too_few else False)


def test_checks_of_the_swap_are_of_the_questions_that_it_changes(reading):
    checks = {row["name"]: row["value"] for row in reading.verdict["checks"]}
    # Of all questions, those whose answer is the same under the other values count for both sides.
    for pair in (("true", "shuffled"), ("shown", "shuffled")):
        assert checks[" - ".join(pair)] > 0.99 > 0.95 > reading.differences[pair].value


def test_a_model_that_is_no_better_than_its_control_is_not_grounded(asked_about):
    """Where the questions give the answers away, a control that sees no field knows them, too."""
    found = _evaluate(Reader(), asked_about, controls={"text_only": Reader()}).verdict
    failed = [row["name"] for row in found["checks"] if row["passed"] is False]
    assert failed == ["true - text_only"]
    assert not found["grounded"]


def test_differences_are_of_the_scores(reading):
    # Of 24 windows in a small region: with blocks as long as its fields are correlated, there are too few.
    result = dataclasses.replace(reading, floor=Scales()).to_dict()
    f1 = result["fact_f1"]
    row = result["differences"]["true - shuffled"]
    assert row["difference"] == pytest.approx(f1["true"] - f1["shuffled"])
    low, high = row["interval"]
    assert low < row["difference"] < high
    assert result["conditions"]["shuffled"]["interval"][0] < f1["shuffled"]
    # All are right, so that blocks are those of another condition.
    assert result["conditions"]["true"]["interval"] is None
    assert result["intervals"]["claimed"]


def test_blocks_are_as_long_as_the_fields_are_correlated(asked_about, not_looking):
    """Fewer and larger blocks than the scores alone would ask for, in every interval and difference."""
    store, _, _ = asked_about
    found = not_looking
    assert found.floor == field_scales(store)
    trust = found.to_dict()["intervals"]
    assert (trust["field_hours"], trust["field_kilometers"]) == (found.floor.hours, found.floor.kilometers)
    wide = dataclasses.replace(found, floor=Scales(hours=math.inf, kilometers=math.inf))
    assert wide.intervals["true"].num_blocks == 1 < found.intervals["true"].num_blocks
    assert wide.differences["true", "prior"].interval is None


class Scorer(Reader):
    """Holds each byte of right words likely by a half, and of others by a quarter."""

    def score(self, windows, prompts, answers, *, index=None):
        right = self.answer(windows, prompts, index=index)
        return [
            SimpleNamespace(
                log_probabilities=np.full(len(text), math.log(0.5 if text == said else 0.25)),
                right=np.full(len(text), text == said),
                num_bytes=len(text.encode()),
            )
            for text, said in zip(answers, right, strict=True)
        ]


def test_the_likelihood_of_the_right_words(asked_about):
    conditions = _evaluate(Scorer(), asked_about).to_dict()["conditions"]
    # The wording of this reader is not always that of the pair: with the true field it is right in some texts.
    true, shown, shuffled = (conditions[name] for name in ("true", "shown", "shuffled"))
    for row in (true, shown, shuffled):
        share = row["token_accuracy"]
        assert row["token_loss"] == pytest.approx(share * math.log(2) + (1 - share) * math.log(4))
        assert row["bits_per_byte"] < row["token_loss"] / math.log(2)  # "°" is two bytes
    assert true["token_accuracy"] > 2 * shuffled["token_accuracy"]
    assert shown["token_accuracy"] > 2 * shuffled["token_accuracy"]
    assert conditions["oracle"]["token_loss"] is None


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_goes_on(asked_about, tmp_path):
    class Stops(Reader):
        def answer(self, windows, prompts, *, index=None):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().answer(windows, prompts, index=index)

    def transcript(name):
        return Transcript(tmp_path / f"{name}.jsonl", {"weights": "1"})

    whole = Reader()
    expected = _evaluate(whole, asked_about).to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "_PORTION", 50)
        with pytest.raises(KeyboardInterrupt):
            _evaluate(Stops(), asked_about, transcript=transcript)
        rest = Reader()
        assert _evaluate(rest, asked_about, transcript=transcript).to_dict() == expected
        again = Reader()
        assert _evaluate(again, asked_about, transcript=transcript).to_dict() == expected
    assert sum(len(call[1]) for call in rest.calls) == sum(len(call[1]) for call in whole.calls) - 100
    assert not again.calls


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
    assert result["conditions"]["true"]["numeric_error"] == {"mean/t2m": pytest.approx(5.0)}  # (0 + 10) / 2
    assert result["conditions"]["persistence"]["numeric_error"] == {
        "maximum/t2m": pytest.approx(10.0),
        "mean/t2m": pytest.approx(5.0),
    }
    by_kind = result["conditions"]["true"]["by_kind_and_variable"]
    assert by_kind == {"maximum/t2m": 0.0, "mean/t2m": pytest.approx(1 / 2)}
    assert result["conditions"]["true"]["mean_of_kinds"] == pytest.approx(1 / 4)
    assert result["conditions"]["true"]["by_variable"] == {"t2m": pytest.approx(2 / 5)}
    assert not result["intervals"]["claimed"]
    assert "ten" in result["intervals"]["why"] or "10" in result["intervals"]["why"]


def _one_each(windows):
    return [Question(number, "?", ("mean", "t2m", ())) for number in range(len(windows))]


def _outcome(right, wrong):
    truth = Fact("mean", "t2m", 10.0)
    stated = [[Fact("mean", "t2m", 10.0)]] * right + [[Fact("mean", "t2m", 30.0)]] * wrong
    return Outcome([count(facts, [truth]) for facts in stated], right + wrong, 0)


@pytest.mark.parametrize("best", GUESSERS)
def test_prior_is_the_best_of_the_guessers(best, asked_about):
    windows = asked_about[1][:4]
    outcomes = {name: _outcome(3, 1) for name in ("true", "shuffled", "shown", "blank", "oracle")}
    outcomes |= {name: _outcome(2, 2) if name == best else _outcome(1, 3) for name in GUESSERS}
    result = Grounding(windows, _one_each(windows), [True] * 4, outcomes).to_dict()
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
    assert set(figures["fact_f1"]) >= {
        "true", "shuffled", "shown", "blank", "mean_field", "other_time", "prior", "prior_guesser",
        "climatology", "persistence", "text_only", "place_only", "regressor", "oracle",
    }  # fmt: skip
    assert figures["fact_f1"]["true"] == 1.0
    assert figures["fact_f1"]["shuffled"] is None
    assert figures["differences"]["true - shuffled"]["difference"] is None
    assert math.isnan(result.score("shown").f1)


def test_questions_that_nobody_can_answer_are_refused():
    store = make_store({"t2m": KELVIN + np.arange(12.0)})
    questions = [Question(0, "Any wind?", ("absent", "ws10", ()))]
    with pytest.raises(PairsError, match="at least one that asks for one fact"):
        evaluate_grounding(Reader(), store, [store.window(10)], questions, history=1)


def test_questions_that_the_fields_do_not_answer_are_left_out_and_counted():
    """Half of the days have no temperature; salt is no variable, temperature has no direction, and is there."""
    level = KELVIN + np.random.default_rng(0).uniform(0, 20, 60)
    level[1::2] = np.nan
    splits = Splits(np.arange(20), np.arange(24, 30), np.arange(36, 60))
    store = make_store({"t2m": level, "msl": 1e5 + np.arange(60.0)}, splits=splits)
    windows = [store.window(step, Box(4.5, 25, 5, 5), 1) for step in range(36, 60)]
    told = [Question(n, "What is the mean temperature?", ("mean", "t2m", ())) for n in range(24)]
    untold = [
        Question(0, "Salt?", ("mean", "salt", ())),
        Question(0, "Where to?", ("direction", "t2m", ())),
        Question(0, "Any temperature?", ("absent", "t2m", ())),
    ]
    missing = [Question(1, "Any temperature?", ("absent", "t2m", ()))]
    model = OwnWords()
    found = evaluate_grounding(model, store, windows, told + untold + missing, history=1)
    assert found.num_left_out == found.to_dict()["num_left_out"] == 12 + len(untold)
    assert found.questions == told[::2]
    figures = found.to_dict()["abstention"]
    assert figures["num_answerable"] == 12
    assert figures["by_reason"]["unseen"]["num_questions"] >= 1
    assert (
        evaluate_grounding(Oracle(), store, windows, told, history=1).to_dict()["abstention"][
            "false_abstentions"
        ]
        == 0
    )
    with pytest.raises(PairsError, match="which the fields tell"):
        evaluate_grounding(model, store, windows, untold, history=1)


class Sealed(Reader):
    """Has subjects of its own, which are nobody's business."""

    @property
    def subjects(self):
        return ("physics", "chemistry")


def test_what_a_model_calls_subjects_is_its_own(asked_about):
    store, windows, questions = asked_about
    few = [question for question in questions if question.window < 2]
    found = evaluate_grounding(Sealed(), store, windows, few, history=HISTORY, thorough=False)
    assert found.score("true").f1 == 1.0


def test_progress_is_told_by_stage(asked_about):
    told = {}

    def progress(stage):
        return lambda done, total: told.setdefault(stage, []).append((done, total))

    _evaluate(Scorer(), asked_about, progress=progress)
    assert list(told) == ["questions", "right words", "questions, oracle"]
    for counts in told.values():
        done, total = zip(*counts, strict=True)
        assert done[0] == 0
        assert done[-1] == total[0] > 0
        assert list(done) == sorted(done)


def test_windows_are_not_changed(asked_about):
    _, windows, _ = asked_about
    before = [dataclasses.replace(window, fields=window.fields.copy()) for window in windows]
    _evaluate(Reader(), asked_about)
    assert all(np.array_equal(one.fields, other.fields) for one, other in zip(before, windows, strict=True))


class Abstains(Reader):
    """Says of whatever it is asked that the fields do not hold it; or of one variable, by its name."""

    def __init__(self, variable=None):
        super().__init__()
        self.variable = variable

    def answer(self, windows, prompts, *, index=None):
        if self.variable is None:
            return [ABSENCES[number % len(ABSENCES)] for number in range(len(prompts))]
        return [NAMED_ABSENCES[0].format(name=name_of(self.variable))] * len(prompts)


def test_who_denies_another_variable_than_was_asked_for_does_not_abstain(asked_about):
    right, wrong = (_evaluate(Abstains(name), asked_about).to_dict() for name in (None, "ozone"))
    assert right["abstention"]["abstained"] == 1.0
    assert wrong["abstention"]["by_reason"]["withheld"]["abstained"] == 0.0
    assert wrong["abstention"]["by_reason"]["masked"]["abstained"] == 0.0
    assert all(row["abstained"] == 1.0 for row in right["withheld"].values())
    assert all(row["abstained"] == 0.0 for row in wrong["withheld"].values())
    for result in (right, wrong):  # where there is an answer, it is not given, whatever is named
        assert result["abstention"]["false_abstentions"] == 1.0


def test_invented_is_what_the_field_shown_does_not_tell(asked_about):
    """To deny what is there is to invent; so is a value where there is nothing; another true fact is not."""
    denies = _evaluate(Abstains(), asked_about).to_dict()["conditions"]
    assert denies["true"]["invented_rate"] == 1.0
    assert denies["blank"]["invented_rate"] == 0.0
    _, windows, _ = asked_about
    makes_up = _evaluate(Constant(windows[0]), asked_about).to_dict()["conditions"]
    assert makes_up["blank"]["invented_rate"] == 1.0
    assert makes_up["true"]["invented_rate"] == 0.0  # wrong, but about what is there

    class Chatty(Reader):
        def answer(self, windows, prompts, *, index=None):
            texts = super().answer(windows, prompts, index=index)
            numbers = range(len(prompts)) if index is None else index
            rng = np.random.default_rng(0)
            return [
                " ".join([text, *(question_answer(fact, rng)[1] for fact in _first_facts(windows[number]))])
                for text, number in zip(texts, numbers, strict=True)
            ]

    chatty = _evaluate(Chatty(), asked_about)
    figures = chatty.to_dict()["conditions"]["true"]
    assert figures["invented_rate"] == 0.0
    assert figures["precision"] == 1.0
    # What is true and was not asked for counts for nothing: as many facts as questions.
    assert chatty.score("true").num_stated == chatty.score("true").num_referenced


@pytest.mark.parametrize(("withheld", "invented"), [(("t2m",), 0.0), ((), 1.0)])
def test_to_deny_what_is_withheld_is_not_to_invent(asked_about, withheld, invented):
    store, windows, questions = asked_about
    asked_one = next(question for question in questions if question.key[1] == "msl")
    question = dataclasses.replace(asked_one, withheld=withheld)
    found = evaluate_grounding(Abstains("t2m"), store, windows, [question], history=HISTORY)
    assert found.to_dict()["conditions"]["true"]["invented_rate"] == invented


def _first_facts(window):
    return [fact for fact in extract(window) if fact.kind == "mean"][:1]


def test_differences_are_over_questions_that_count_for_both():
    """The third has no donor: it was asked about with the true field only."""
    windows = random_store(num_times=12, splits=Splits(np.arange(4), np.arange(5, 6), np.arange(7, 12)))
    some = [windows.window(step, Box(5, 26, 4, 4), 1) for step in (8, 9, 10)]
    good, bad = Fact("mean", "t2m", 10.0), Fact("mean", "t2m", 30.0)
    true = [count([good], [good]), count([bad], [good]), count([good], [good])]
    shuffled = [count([bad], [good]), count([bad], [good]), None]
    guess = [count([bad], [good])] * 3
    outcomes = {"true": Outcome(true, 3, 0), "shuffled": Outcome(shuffled, 2, 0)}
    outcomes |= {name: Outcome(guess, 3, 0) for name in GUESSERS}
    found = Grounding(some, _one_each(some), [True] * 3, outcomes).differences
    assert found["true", "shuffled"].value == pytest.approx(1 / 2)  # of the first two windows
    assert found["true", "prior"].value == pytest.approx(2 / 3)


def test_persistence_is_the_time_before_and_no_memory_of_training(asked_about):
    store, windows, questions = asked_about
    outcomes = _evaluate(Reader(), asked_about)
    figures = outcomes.to_dict()
    assert "persistence" in figures["fact_f1"]
    assert "persistence" not in GUESSERS  # it has seen more than training
    one = next(q for q in questions if q.key[:2] == ("mean", "t2m"))
    step = int(np.searchsorted(store.time, windows[one.window].time[-1]))
    box = window_box(windows[one.window])
    before = {fact.key: fact for fact in extract(store.window(step - 1, box, HISTORY))}
    told = persisted(store, windows, [one], history=HISTORY)[0]
    assert told == spoken(before[one.key])
    early = store.window(1, box, HISTORY)
    assert persisted(store, [early], [dataclasses.replace(one, window=0)], history=HISTORY) == [None]


def test_what_is_easy_to_say_makes_no_half_right_model_better(asked_about):
    """Right in some answers; to each it adds all that is true of the field. Wrong additions count."""
    store, windows, questions = asked_about

    class Half(Reader):
        beside = ()

        def answer(self, windows, prompts, *, index=None):
            texts = super().answer(windows, prompts, index=index)
            rng = np.random.default_rng(0)
            told = []
            for text, prompt, number in zip(texts, prompts, index, strict=True):
                truth = self.table(windows[number]).get(asked(prompt))
                if truth is not None and truth.kind != "mean":
                    text = ""  # it knows nothing but means
                beside = [
                    fact for fact in extract(windows[number], kinds=self.beside) if fact.key != asked(prompt)
                ]
                told.append(" ".join([text, *(question_answer(fact, rng)[1] for fact in beside)]))
            return told

    class Padded(Half):
        beside = ("mean",)

    some = [question for question in questions if question.key[0] in ("mean", "maximum")]
    plain, padded = (
        evaluate_grounding(model, store, windows, some, history=HISTORY, thorough=False)
        for model in (Half(), Padded())
    )
    assert 0.2 < plain.score("true").recall < 0.9
    assert padded.score("true") == plain.score("true")


class LooksAtTheMask(Reader):
    """Says what is usual; where a variable has no value, that there is none. It reads no value."""

    def __init__(self, window):
        super().__init__()
        self.usual = {fact.key: fact for fact in extract(window)}

    def table(self, window):
        held = set(window.available())
        return {key: fact for key, fact in self.usual.items() if not held.isdisjoint(sources(fact.variable))}


def test_to_see_that_there_are_no_values_is_not_to_read_values():
    """Half of the places have no pressure, the other half no temperature; rising, always."""
    splits = Splits(np.arange(8), np.array([10, 11]), np.arange(13, 30))
    rising = np.arange(30.0)[:, None, None] * np.ones((1, 10, 24))
    land = np.arange(24) < 12
    store = make_store(
        {"t2m": np.where(land, 280 + 3 * rising, np.nan), "msl": np.where(land, np.nan, 1e5 + 300 * rising)},
        splits=splits,
        longitude=np.arange(20.0, 44.0),
    )
    windows = [
        store.window(step, Box(row + 2.5, column + 2.5, 5, 5), HISTORY)
        for step in range(14, 30)
        for row, column in ((0, 20), (5, 38))
    ]
    pairs = list(describe(enumerate(windows), seed=2, kinds=("tendency",), abstentions=0.0))
    questions = questions_of([[p for p in pairs if p.sample == n] for n in range(len(windows))])
    usual = store.window(14, Box(2.5, 32, 5, 23), HISTORY)
    found = evaluate_grounding(LooksAtTheMask(usual), store, windows, questions, history=HISTORY)
    figures = found.to_dict()
    assert figures["fact_f1"]["true"] == 1.0
    assert figures["conditions"]["shuffled"]["abstained"] > 0.2  # some were given values of the other half
    scored = {
        name: sum(figures["conditions"][name]["num_by_kind_and_variable"].values())
        for name in ("shown", "shuffled")
    }
    assert scored["shown"] == scored["shuffled"] < len(questions)  # those are left out of both
    for pair in (("true", "shuffled"), ("shown", "shuffled")):
        assert found.differences[pair].value == 0.0
    assert not any(row["read"] for row in figures["verdict"]["variables"].values())
    # No swap changed an answer, so that nothing tells of it: named, and no reason to call it grounded.
    assert {row["num_questions"] for row in figures["verdict"]["variables"].values()} == {0}
    assert figures["verdict"]["grounded"] is None
    assert "too few questions: msl, t2m, tendency" in figures["verdict"]["words"]


@pytest.mark.parametrize(
    ("beside", "right"),
    [
        ("", True),
        ("Mean temperature {t2m:.0f} °C.", True),
        ("Mean temperature {wrong:.0f} °C.", False),
        ("No temperature given.", False),
        ("No dew point given.", True),
        ("Mean dew point 3 °C.", False),
    ],
)
def test_an_abstention_beside_which_something_wrong_is_said_does_not_count(asked_about, beside, right):
    store, windows, questions = asked_about
    question = Question(0, "What is the mean ozone?", ("absent", "ozone", ()))
    t2m = next(fact.value for fact in extract(windows[0], kinds=["mean/t2m"]))

    class Says(Reader):
        def answer(self, windows, prompts, *, index=None):
            told = beside.format(t2m=t2m, wrong=t2m + 9)
            return [f"No ozone given. {told}".strip() for _ in prompts]

    told = evaluate_grounding(
        Says(), store, windows, [*questions[:1], question], history=HISTORY, thorough=False
    ).to_dict()
    assert told["abstention"]["abstained"] == float(right)


def test_how_many_numbers_an_error_is_the_mean_of(asked_about):
    class Once(Reader):
        def answer(self, windows, prompts, *, index=None):
            return [
                super().answer(windows, prompts[:1], index=index[:1])[0],
                *[""] * (len(prompts) - 1),
            ]

    store, windows, questions = asked_about
    means = [question for question in questions if question.key == ("mean", "t2m", ())]
    found = evaluate_grounding(Once(), store, windows, means, history=HISTORY, thorough=False).to_dict()
    row = found["conditions"]["true"]
    assert row["num_errors"] == {"mean/t2m": 1}
    assert row["num_by_kind_and_variable"] == {"mean/t2m": len(means)}
    assert len(means) > 5


MEANING = {
    "How warm is it around here?": ("mean", "t2m", ()),
    "How hot does it get?": ("maximum", "t2m", ()),
    "Where does the air come from?": ("direction", "wd10", ()),
}


class OwnWords:
    """Knows by heart what questions in any words mean, and answers as briefly as can be."""

    def answer(self, windows, prompts, *, index=None):
        said = []
        for prompt, number in zip(prompts, index, strict=True):
            fact = {fact.key: fact for fact in extract(windows[number])}.get(MEANING.get(prompt))
            value = "That is not given" if fact is None else spoken(fact).value
            said.append(f"{value}." if isinstance(value, str) else f"{value:g} °C")
        return said


def test_questions_in_own_words_count_by_what_is_declared_of_them(asked_about):
    """Bare values and abstentions without the name: the words of the question tell nothing of what they are about."""
    store, windows, _ = asked_about
    questions = [
        Question(number, prompt, key) for number in range(len(windows)) for prompt, key in MEANING.items()
    ]
    # A control that answers from facts, as the regressor, is told, too.
    controls = {"regressor": Oracle()}
    found = evaluate_grounding(OwnWords(), store, windows, questions, history=HISTORY, controls=controls)
    figures = found.to_dict()
    assert (
        figures["fact_f1"]["true"] == figures["fact_f1"]["oracle"] == figures["fact_f1"]["regressor"] == 1.0
    )
    assert figures["fact_f1"]["shown"] == 1.0
    assert figures["conditions"]["blank"]["abstained"] == 1.0
    assert {name: row["abstained"] for name, row in figures["withheld"].items()} == {"t2m": 1.0, "wd10": 1.0}
    assert all(sample.right for sample in found.samples)


def test_the_same_words_for_two_things_count_each_by_its_own(asked_about):
    """Of a bare value, each question reads its own fact; the oracle says both in full."""
    store, windows, _ = asked_about
    keys = [("mean", "t2m", ()), ("maximum", "t2m", ())]
    questions = [
        Question(number, "How warm is it around here?", key) for number in range(len(windows)) for key in keys
    ]
    found = evaluate_grounding(OwnWords(), store, windows, questions, history=HISTORY)
    assert found.score("oracle").f1 == 1.0
    by_kind = found.to_dict()["conditions"]["true"]["by_kind"]
    assert by_kind["mean"] == 1.0
    assert by_kind["maximum"] < 0.5


def test_a_control_that_is_told_another_subject_is_asked_again(asked_about, tmp_path):
    """The same words, declared of another fact: what was kept of the first is no answer to the second."""
    store, windows, _ = asked_about
    for kind in ("mean", "maximum"):
        questions = [Question(number, "Tell me how warm.", (kind, "t2m", ())) for number in range(4)]
        found = evaluate_grounding(
            OwnWords(),
            store,
            windows,
            questions,
            history=HISTORY,
            controls={"regressor": Oracle()},
            transcript=lambda name: Transcript(tmp_path / f"{name}.jsonl", {}),
            thorough=False,
        )
        assert found.score("regressor").f1 == 1.0
