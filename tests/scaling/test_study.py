"""From a study's file to its runs, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from climafuse.errors import ConfigurationError
from climafuse.scaling.study import Study, choose, figure, first_runs, load_study, most_runs, opened, plan
from climafuse.training.config import RunConfig, read_yaml

TEXT = """
name: small
base: {training: {learning_rate: 2e-3}, data.train_windows: 8}
budget: {steps: 5}
runs:
  - {fusion: {name: prefix, options: {length: 8}}, fusion.sites: input}
grid:
  fusion: [{name: film, options: {queries: 4}}, {name: gated_addition}]
  fusion.sites: [3, output]
stages:
  - {best: 2, distinct: [fusion.name], grid: {training.learning_rate: [1e-3]}}
  - {best: 2, distinct: [fusion.name, fusion.sites], grid: {training.seed: [0, 1, 2]}}
"""


def study(text: str = TEXT, **changes: Any) -> Study:
    overrides = [f"{key}={value}" for key, value in changes.items()]
    return read_yaml(Study, text, overrides=overrides)


def told(runs: list[Any]) -> list[tuple[Any, ...]]:
    return [
        (r.config.fusion.name, r.config.fusion.sites, r.config.training.learning_rate, r.config.training.seed)
        for r in runs
    ]


def scored(runs: list[Any], values: list[float | None]) -> dict[str, Any]:
    pairs = zip(runs, values, strict=True)
    return {r.id: None if v is None else {"validation": {"fact_f1": {"true": v}}} for r, v in pairs}


def test_runs_are_the_single_ones_then_every_combination() -> None:
    runs = first_runs(study())
    assert told(runs) == [
        ("prefix", "input", 2e-3, 0),
        ("film", 3, 2e-3, 0),
        ("film", "output", 2e-3, 0),
        ("gated_addition", 3, 2e-3, 0),
        ("gated_addition", "output", 2e-3, 0),
    ]
    assert [run.config.fusion.options for run in runs[:4]] == [
        {"length": 8},
        {"queries": 4},
        {"queries": 4},
        {},
    ]
    assert {(run.config.training.steps, run.config.data.train_windows) for run in runs} == {(5, 8)}
    assert runs[1].label == "film, sites 3, learning_rate 0.002, seed 0"


def test_an_id_is_that_of_what_a_run_computes() -> None:
    ids = [run.id for run in first_runs(study())]
    assert len(set(ids)) == 5
    assert ids == [run.id for run in first_runs(study())]  # known beforehand, and again
    # The same settings written another way, and files in another place, are the same runs.
    other = TEXT.replace(
        "training: {learning_rate: 2e-3}", "training.learning_rate: 0.002, output.directory: x"
    )
    assert ids == [run.id for run in first_runs(study(other))]
    # Another default for all is another run.
    assert not {*ids} & {run.id for run in first_runs(study(TEXT.replace("2e-3", "3e-3")))}


def test_seconds_are_a_budget_that_anneals_by_the_clock() -> None:
    training = first_runs(study(TEXT.replace("steps: 5", "seconds: 30")))[0].config.training
    assert (training.max_seconds, training.schedule_by) == (30.0, "seconds")
    assert training.steps > 100_000  # no limit


def test_later_stages_come_from_figures_and_only_when_all_are_there() -> None:
    one = study()
    first = first_runs(one)
    # prefix .5, film .9 and .8, gated .6 and none: the best two of different fusions are film at 3, gated at 3.
    found = scored(first, [0.5, 0.9, 0.8, 0.6, None])
    assert plan(one, dict(list(found.items())[:4])) == first
    second = plan(one, found)
    assert told(second[5:]) == [("film", 3, 1e-3, 0), ("gated_addition", 3, 1e-3, 0)]
    assert {run.stage for run in second[5:]} == {1}
    # Now film at 3 is best by either rate, and counts once; film at output comes next. Seed 0 is done already.
    found |= scored(second[5:], [0.95, 0.1])
    third = plan(one, found)
    assert told(third[7:]) == [
        ("film", 3, 1e-3, 1),
        ("film", 3, 1e-3, 2),
        ("film", "output", 2e-3, 1),
        ("film", "output", 2e-3, 2),
    ]
    assert third[5].config.fusion.options == {"queries": 4}
    assert len(third) <= most_runs(one) == 5 + 2 + 6
    assert plan(one, found | scored(third[7:], [0.0] * 4)) == third


def test_nothing_follows_where_everything_failed() -> None:
    assert plan(study(), scored(first_runs(study()), [None] * 5)) == first_runs(study())


def test_the_lowest_may_be_best_and_of_equals_the_first() -> None:
    one = study(goal="lowest", metric="training.loss")
    runs = first_runs(one)
    found = {
        r.id: {"training": {"loss": v}} for r, v in zip(runs, [3.0, 1.0, 2.0, 1.0, float("nan")], strict=True)
    }
    assert choose(one, runs, found, 3) == [runs[1], runs[3], runs[2]]


def test_a_figure_by_its_path() -> None:
    assert figure({"a": {"b": 1}}, "a.b") == 1.0
    for figures in ({"a": {"b": None}}, {"a": 1}, {}, None, {"a": {"b": float("inf")}}):
        assert figure(figures, "a.b") is None


def test_sections_are_opened_and_options_are_not() -> None:
    content = {
        "fusion": {"name": "film", "options": {"queries": 2}},
        "training.seed": 1,
        "fusion.options.heads": 3,
    }
    assert opened(content) == {
        "fusion.name": "film",
        "fusion.options": {"queries": 2},
        "training.seed": 1,
        "fusion.options.heads": 3,
    }


def test_the_settings_of_a_run_win_over_the_base_key_by_key() -> None:
    text = "name: a\nbase: {fusion: {name: film, options: {queries: 4, feed_forward: 8}}}\n"
    runs = first_runs(study(text + "grid: {fusion.options.queries: [4, 16]}"))
    assert [run.config.fusion.options for run in runs] == [
        {"queries": 4, "feed_forward": 8},
        {"queries": 16, "feed_forward": 8},
    ]
    assert first_runs(study(text + "grid: {fusion.options: [{queries: 1}]}"))[0].config.fusion.options == {
        "queries": 1
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small", "name: a b", "name"),
        ("grid:", "gird:", "Did you mean 'grid'"),
        ("learning_rate: 2e-3", "learning_rat: 2e-3", "Did you mean 'learning_rate'"),
        ("[3, output]", "[]", "at least one value"),
        ("fusion.sites: [3", "fusion.site: [3", "Did you mean 'sites'"),
        (
            "seed: [0, 1, 2]",
            "seed: [0, x]",
            "a whole number",
        ),  # of the last stage, found before the first run
        ("distinct: [fusion.name]", "distinct: [fusion.nme]", "fusion.nme"),
        ("best: 2", "best: 0", "at least 1"),
        ("steps: 5", "hours: 5", "unknown key"),
        ("name: small", "name: small\nmetric: test.fact_f1.true", "no test figures left"),
        ("name: small", "name: small\nmetric: fact_f1.true", "validation.fact_f1.true"),
    ],
)
def test_mistakes_are_found_when_the_file_is_read(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ConfigurationError, match=message):
        load_study(path)


def test_a_study_without_runs_or_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="runs, or a grid"):
        study("name: a")
    with pytest.raises(ConfigurationError, match="YAML file of a study"):
        load_study(tmp_path / "none.yaml")
    assert RunConfig() == first_runs(study("name: a\nruns: [{training.seed: 0}]"))[0].config
