"""The report: everything that was measured is on the page, nothing else is, and no text gets out of its place."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise

import pytest

from climafuse.model.card import grounding_section
from climafuse.report.html import CONDITIONS, render, write_report
from climafuse.report.samples import Picture, SampleCard
from climafuse.training.config import RunConfig
from climafuse.training.trained_on import TrainedOn
from tests.report.pages import F1, HOSTILE, Page, evaluation, record


def card(**changes):
    settings = {
        "prompt": "What is the mean temperature?",
        "answer": "The mean temperature is 8 °C.",
        "right": True,
        "topic": "mean temperature",
        "where": "40°N to 56°N",
        "when": "2026-03-31 15:00",
        "truth": "8 °C",
        "exact": "7.80 °C",
        "facts": ({"fact": "mean temperature", "said": "8 °C", "field": "8 °C", "right": True},),
        "pictures": (Picture(b"RIFF", "Map of temperature", "What the fields hold"),),
    }
    return SampleCard(**settings | changes)


@pytest.fixture(scope="module")
def page():
    return Page(render(record(), cards=[card(), card(right=False, prompt="Where is it coldest?")]))


def row(page_text, *cells):
    """Whether these stand one after the other, with nothing but spaces between."""
    return re.search(r"\s*".join(map(re.escape, cells)), page_text) is not None


# ---- What is there -------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_complete(page):
    assert page.mistakes == []
    assert {
        "verdict", "about", "grounding", "samples", "facts", "errors", "polling", "abstention", "learning", "gates",
    } <= page.ids  # fmt: skip
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(headings))  # none left out
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes["scope"] for attributes in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"
    for attributes in page.all("img"):
        assert attributes["alt"]
    for _, attributes in page.tags:  # whatever names a label names one that is there
        assert attributes.get("aria-labelledby", "verdict") in page.ids
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in page.ids


def test_the_verdict_is_first(page):
    assert page.words.index("Grounded") < page.words.index("What was trained on what")
    text = page.words
    assert (
        "it knows more than the best guesser true field − best guesser: +0.434, 95 % interval 0.380 to 0.490; "
        "must lie above 0" in text
    )
    assert "Not measured: the questions alone do not give the answers away true field − text only: –" in text
    assert (
        "The verdict rests on the checks that were measured. climafuse evaluate runs/paris measures" in text
    )
    # Each figure with its interval, 0.03 to both sides; the best guesser is the typical fact.
    for label, value, low, high in (
        ("true field", "0.921", "0.891", "0.951"),
        ("shuffled", "0.299", "0.269", "0.329"),
        ("shown", "0.922", "0.892", "0.952"),
        ("best guesser", "0.487", "0.457", "0.517"),
    ):
        assert row(page.text, label, value, f"{low} to {high}")


def test_the_verdict_says_what_is_read_what_is_not_and_what_cannot_be_told():
    verdict = {
        "grounded": False,
        "words": "not grounded",
        "variables": {"t2m": {"read": True}, "msl": {"read": False}},
        "kinds": {"mean": {"read": True}, "maximum_position": {"read": False}, "event": {"read": None}},
    }
    words = Page(render(record(evaluation=evaluation(verdict=verdict)))).words
    assert "answers follow the field shown: t2m, mean. They do not: msl, maximum position. " in words
    assert "Not to be told, by so few questions: event." in words


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ({"grounded": False, "checks": []}, "Not grounded"),
        ({}, "Not measured"),
        ({"grounded": "yes"}, "Not measured"),
    ],
)
def test_the_verdict_says_what_was_found(verdict, words):
    first = Page(render(record(evaluation=evaluation(verdict=verdict)))).words.partition("What was trained")[
        0
    ]
    assert words in first
    assert "The words come from the climate fields" not in first


def test_every_condition_stands_with_its_interval(page):
    labels = {entry.name: entry.label for entry in CONDITIONS}
    for name, f1 in F1.items():
        assert row(page.text, f"{f1:.3f}", f"[{f1 - 0.03:.3f}, {f1 + 0.03:.3f}]"), name
        assert labels[name] in page.text
    assert (
        page.words.index("Shuffled values of another") - page.words.index("True field the field as it is")
        < 100
    )
    assert "a label of the evaluation" not in page.text  # known conditions have shorter ones
    assert "546 questions about 96 windows of 3 times that were not in training" in page.words
    assert "23.4 effective blocks of 41, each 36 hours by 1,800 km" in page.words
    assert "of other times one block tells nothing" in page.words
    assert row(page.text, "true field − best guesser", "+0.434", "0.380 to 0.490", "0.0001")
    assert row(page.text, "oracle − true field", "+0.079", "0.050 to 0.110", "< 0.0001")


def test_an_unknown_condition_is_shown_under_its_label():
    found = evaluation()
    found["conditions"]["winter"] = {"f1": 0.125, "label": "only winter"}
    text = Page(render(record(evaluation=found))).words
    assert "only winter 0.125" in text
    assert "Others" in text


def test_no_interval_comes_with_its_reason():
    intervals = {"claimed": False, "why": "3.2 effective blocks, fewer than 10", "effective_blocks": 3.2}
    text = Page(render(record(evaluation=evaluation(intervals=intervals)))).words
    assert "No interval is claimed. 3.2 effective blocks, fewer than 10. Effective blocks: 3.2." in text


def test_blocks_of_one_window_have_no_size():
    intervals = {
        "claimed": True,
        "why": "",
        "effective_blocks": 10.0,
        "num_blocks": 10,
        "block_kilometers": 0.0,
    }
    text = Page(render(record(evaluation=evaluation(intervals=intervals)))).words
    assert "10 effective blocks of 10. Blocks are twice as long as the measured correlation" in text


def test_facts_by_kind_stand_beside_shuffled(page):
    # F1 of true, shuffled, shown, and of the best guesser (typical fact, 0.487), two digits each.
    for kind in ("mean value 40 asked", "highest value", "direction 7 asked"):
        assert f"{kind} 0.92 0.30 0.92 0.49" in page.words
    assert "wind direction 7 asked 0.82 0.20 0.82 0.39" in page.words
    assert row(page.text, "0.92", "0.30")


def test_errors_are_in_physical_units(page):
    # 1.5 - F1 kelvin of the mean; of directions 120 (1 - F1) degrees: 9.48, 84.1, 9.36.
    mean = ("0.58", "1.20", "0.58", "1.05", "1.01", "1.06", "0.55")
    assert row(page.text, "mean temperature", "°C", *mean, "1 °C")
    assert row(page.text, "wind direction", "°", "9.48", "84.1", "9.36")
    assert "27.5° of the octant" in page.text  # half of 45 degrees, and 5 of grace
    assert row(page.text, "place of highest temperature", "km", *["1,234"] * 7, "one cell")


def test_errors_of_few_answers_say_of_how_many():
    found = evaluation()
    shown = found["conditions"]["true"]
    shown["num_errors"] = {"mean/t2m": 17, "direction/wd10": 7, "maximum_position/t2m": 1}
    found["conditions"]["persistence"]["num_errors"] = {"mean/t2m": "17", "direction/wd10": -1e400}
    text = Page(render(record(evaluation=found)))
    assert row(text.text, "mean temperature", "°C", "0.58", "(17 of 40)", "1.20", "0.58")
    assert row(text.text, "wind direction", "°", "9.48", "84.1", "9.36")  # all seven
    assert row(
        text.text, "place of highest temperature", "km", *["1,234"] * 7
    )  # nobody says how many were asked
    assert (
        render(record(evaluation=found)).count(
            '<td class="number muted">0.58<span class="meaning">(17 of 40)</span></td>'
        )
        == 1
    )


def test_polling_and_abstention(page):
    assert row(
        page.text,
        "adversarial",
        "the one that most often went with the other in training",
        "0.880",
        "0.800",
        "0.900",
        "0.850",
        "0.550",
        "0.000",
        "400",
    )
    assert (
        "It abstains in 96.7 % of 210 questions about what the fields do not hold, and in 1.1 % of"
        in page.words
    )
    assert row(page.text, "a place without values", "60", "0.930")
    assert row(page.text, "temperature", "70", "0.970", "0.900")


def test_curves_and_gap(page):
    # Validation 25/400 + 0.02 = 0.0825, training windows 0.0625.
    assert (
        "Gap at the end: +0.020 (validation 0.083, training windows 0.062, measured alike)"
        in page.words.replace("0.082,", "0.083,")
    )
    assert row(page.text, "400", "0.082", "0.062") or row(page.text, "400", "0.083", "0.062")
    assert "output.attention gate: 0.1" in page.words
    assert "output.feed forward gate: 0.2" in page.words


def test_small_losses_keep_their_digits():
    log = [{"step": step, "loss": 5 / step**2, "eval_loss": 1 / step, "eval_train_loss": 0.000123456 * 800 / step}
           for step in (1, 400, 800)]  # fmt: skip
    text = Page(render(record(log=log)))
    assert "+0.001 (validation 0.001, training windows 0.000123, measured alike)" in text.words
    assert row(text.text, "800", "0.001", "0.000123")
    assert row(text.text, "400", "0.003", "0.000247") or row(text.text, "400", "0.002", "0.000247")
    zero = [{"step": step, "eval_loss": 0.0} for step in (1, 2, 3)]
    assert "Validation at the end: 0.000." in Page(render(record(log=zero))).words


def test_closed_gates_are_called_so():
    log = [{"step": step, "gate/output.gate": 0.0} for step in (1, 2, 3)]
    assert "Every gate is zero" in Page(render(record(log=log))).words


def test_what_was_trained_on_what(page):
    for words in (
        "ERA5 sample", "temperature (t2m)", "2026-03-25 00:00 to 2026-03-28 00:00",
        "2026-03-31 07:00 to 2026-03-31 23:00", "CC-BY-4.0", "smollm2-135m-instruct-q4_1", "4-bit copy dequantized",
        "not the weights that its makers published",
        "Apache-2.0", "134,515,008, frozen", "2,490,368", "400 of 24 windows", "422 s", "A processor, 2 cores, Linux",
        "climafuse 0.1.0, torch 2.13.0", "2026-11-22 14:00:00 UTC", "24,000 texts about 4,000 windows",
        "cross attention",
        "grid transformer (width 64)",
    ):  # fmt: skip
        assert words in page.words, words


def test_other_fields_than_those_of_training_are_named():
    found = evaluation()
    found["data"] |= {"source": "winter.nc", "splits": {"test": ["2025-12-01T00:00", "2025-12-31T00:00"]}}
    text = Page(render(record(evaluation=found))).words
    assert "evaluated on winter.nc" in text
    assert "test period 2025-12-01 00:00 to 2025-12-31 00:00" in text
    assert "train period 2026-03-25 00:00 to 2026-03-28 00:00" in text
    assert "evaluated on" not in Page(render(record())).words


def test_where_nothing_tells_what_was_trained_on_nothing_is_said_of_it():
    """The file that an evaluation found may be another than that of training."""
    found = evaluation()
    found["data"]["unseen"] = None
    text = Page(render(record(trained_on=TrainedOn(), evaluation=found))).words
    assert "96 windows of 3 times; it is not known whether they were in training" in text
    assert "periods not known" in text
    for invented in ("not in training", "train period", "test period", "2026-03-25", "2026-03-31 07:00"):
        assert invented not in text.partition("Answers, right and wrong")[0], invented


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"unseen": True}, "3 times that were not in training"),
        ({"unseen": False}, "3 times by which the best step was chosen"),
        ({"unseen": None}, "3 times; it is not known whether they were in training"),
        ({}, "3 times; it is not known whether they were in training"),  # of an earlier version
    ],
)
def test_page_and_card_say_alike_whether_the_times_were_in_training(told, words):
    found = evaluation()
    del found["data"]["unseen"]
    found["data"] |= told
    assert words in Page(render(record(evaluation=found))).words
    assert words in grounding_section(found)


def test_no_answers_may_be_asked_for():
    text = Page(render(record())).words.partition("Answers, right and wrong")[2].partition("Facts by kind")[0]
    assert "None shown. Of the 30 answers" in text


def test_random_weights_are_called_so():
    run = record()
    config = {**run.config, "backbone": {**run.config["backbone"], "id": "tiny", "random_weights": True}}
    assert "random weights, for capacity only" in Page(render(record(config=config))).words


def test_answers_are_right_or_wrong_in_words_not_by_color_alone(page):
    answers = [attributes["class"] for attributes in page.all("article")]
    assert answers == ["card right", "card wrong"]
    text = page.words.partition("Answers, right and wrong")[2]
    assert "Right" in text
    assert "Wrong" in text
    assert "right: mean temperature, said 8 °C, fields 8 °C" in text
    assert "8 °C (exactly 7.80 °C)" in text
    assert page.all("img")[0] == {
        "src": "data:image/webp;base64,UklGRg==",
        "alt": "Map of temperature",
    }
    # 30 samples, every fourth wrong beginning with the second: 1, 5, …, 29.
    assert "Of the 30 answers kept by the evaluation, 22 are right" in text


# ---- What is missing -----------------------------------------------------------------------------------------


def test_a_run_that_was_not_evaluated_says_so_and_how(page):
    empty = Page(render(record(evaluation={}, log=[], record={})))
    assert empty.mistakes == []
    assert "Not measured" in empty.words.partition("What was trained")[0]
    assert empty.words.count("climafuse evaluate runs/paris") >= 6
    for figure in ("0.921", "0.487"):
        assert figure not in empty.text
    assert {"grounding", "errors", "gates"} <= empty.ids


@pytest.mark.parametrize("section", [key for key in evaluation() if key != "format"])
@pytest.mark.parametrize("value", [None, [None], "text", {"true": [1]}], ids=repr)
@pytest.mark.sampled(5)
def test_any_section_may_be_absent_or_of_another_type(section, value):
    page = Page(render(record(evaluation=evaluation(**{section: value}))))
    assert page.mistakes == []


def test_every_single_value_may_be_null():
    def without(value):
        if isinstance(value, dict):
            return {key: without(entry) for key, entry in value.items()}
        return [without(entry) for entry in value] if isinstance(value, list) else None

    page = Page(render(record(evaluation=without(evaluation()))))
    assert page.mistakes == []
    assert not re.search(r"\b(nan|None|null)\b", page.text)


@pytest.mark.parametrize("number", [float("nan"), 10**400, True, "0.5", -3.0, 7.0])
def test_no_number_breaks_the_page(number):
    found = evaluation(fact_f1=dict.fromkeys([*F1, "prior"], number))
    for row_ in found["conditions"].values():
        row_.update(f1=number, interval=[number, number], by_kind={"mean": number})
    page = Page(render(record(evaluation=found)))
    assert page.mistakes == []


def test_stale_and_unfinished_runs_are_called_so():
    assert "Out of date" in Page(render(record(stale=True))).words
    assert "Out of date" not in Page(render(record())).words
    run = record()
    checkpoint = dataclasses.replace(run, model=run.folder / "checkpoint-200", record={})
    text = Page(render(checkpoint)).words
    assert "Unfinished" in text
    assert "still running or interrupted" in text


# ---- Nothing gets out ----------------------------------------------------------------------------------------


def hostile(value):
    """The same with every text replaced, keys included where they are names."""
    if isinstance(value, dict):
        return {key: hostile(entry) for key, entry in value.items()} | {
            HOSTILE: hostile(next(iter(value.values()), 0))
        }
    if isinstance(value, list):
        return [hostile(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def outside(page):
    """What a page could load or run."""
    found = [
        tag
        for tag, _ in page.tags
        if tag in ("script", "iframe", "object", "embed", "base", "form", "use", "image")
    ]
    for tag, attributes in page.tags:
        found += [f"{tag} {name}" for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "background"):
            value = attributes.get(name)
            if (
                value is not None
                and not value.startswith(("#", "data:image/webp;base64,"))
                and value != "data:,"
            ):
                found.append(f"{tag} {name}={value[:40]}")
        style = attributes.get("style") or ""
        if not re.fullmatch(r"((top|left):-?[\d.]+%|--(share|digits):-?[\d.]+)?", style):
            found.append(f"{tag} style={style[:40]}")
    return found


def test_the_page_loads_and_runs_nothing(page):
    assert outside(page) == []
    content = render(record(), cards=[card()])
    style = content.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|expression", style)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_hostile_texts_stay_texts():
    run = record()
    ill = card(
        prompt=HOSTILE, answer=HOSTILE, topic=HOSTILE, where=HOSTILE, when=HOSTILE, truth=HOSTILE, exact=HOSTILE,
        facts=({"fact": HOSTILE, "said": HOSTILE, "field": HOSTILE, "right": None},),
        pictures=(Picture(b"\x00" * 9, HOSTILE, HOSTILE),), missing=HOSTILE,
    )  # fmt: skip
    content = render(
        dataclasses.replace(
            run,
            folder=run.folder.with_name("<b>run"),
            config=hostile(run.config),
            manifest=hostile(run.manifest),
            log=[{**line, f"gate/{HOSTILE}": 1.0} for line in run.log],
            record=hostile(run.record),
            evaluation=hostile(run.evaluation),
            settings=dataclasses.replace(
                run.settings,
                data=dataclasses.replace(run.settings.data, source=HOSTILE, variables=(HOSTILE,)),
            ),
        ),
        cards=[ill],
        notes=[HOSTILE],
    )
    page = Page(content)
    assert page.mistakes == []
    assert outside(page) == []
    assert "alert(1)" in page.text  # as letters
    assert "\u202e" not in content
    assert "\x00" not in content
    assert "49" not in page.words.partition("Answers, right and wrong")[2].partition("Facts by kind")[0]


def test_long_texts_and_long_tables_are_cut():
    found = evaluation()
    for row_ in found["conditions"].values():
        row_["by_kind"] = {f"kind {number}": 0.5 for number in range(5000)}
        row_["numeric_error"] = {f"kind{number}/t2m": 0.5 for number in range(5000)}
    found["verdict"]["checks"] *= 3000
    found["intervals"]["why"] = "x" * 10**6
    content = render(record(evaluation=found))
    assert Page(content).mistakes == []
    assert len(content) < 1_000_000


def test_writing_is_whole_and_its_size_is_small(tmp_path):
    path = write_report(record(), tmp_path / "deep" / "report.html", cards=[card()] * 10)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert path.stat().st_size < 200_000  # without maps
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_the_same_run_gives_the_same_page():
    def timeless(content):
        return re.sub(r"Written [^<]* by", "", content)

    run = dataclasses.replace(record(), evaluation=json.loads(json.dumps(evaluation())), settings=RunConfig())
    assert timeless(render(run)) == timeless(render(record()))
