"""The demo on a tiny backbone: all its figures, all its files, and no others left of an earlier run."""

from __future__ import annotations

import json

import pytest

from climafuse.cli import demo
from climafuse.evaluation import CONDITIONS, GUESSERS
from tests.training.runs import save_backbone, settings, write_climate


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    content = settings(write_climate(folder / "fields.nc"), save_backbone(folder / "backbone"), folder)
    del content["output"]["directory"]
    content["training"]["steps"] = 4
    content["facts"]["abstention_fraction"] = 0.3
    content["data"]["test_windows"] = 6
    return [
        f"{section}.{key}={json.dumps(value)}"
        for section, values in content.items()
        for key, value in values.items()
    ]


def _arguments(output, overrides):
    return ["--output", str(output), *(part for override in overrides for part in ("--set", override))]


def _figures(path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_the_demo_leaves_model_figures_and_map(tmp_path, overrides, capsys):
    output = tmp_path / "a: demo"  # a path, whatever YAML would make of it
    output.mkdir()
    for name in ("metrics.json", "report.html"):
        (output / name).write_text("of an earlier run")
    assert demo.main(_arguments(output, overrides)) == 0
    figures = _figures(output / "metrics.json")

    measured = {name for name, value in figures["fact_f1"].items() if value is not None}
    assert measured == {*CONDITIONS, *GUESSERS, "prior_guesser", "persistence", "oracle"}
    assert all(0 <= figures["fact_f1"][name] <= 1 for name in measured)
    guessers = [figures["fact_f1"][name] for name in ("prior_guesser", "climatology", "last_training")]
    assert figures["fact_f1"]["prior"] == max(guessers)
    assert figures["best_guesser"] in GUESSERS
    assert figures["data"]["num_windows"] == 6
    assert figures["num_questions"] > 0
    assert figures["abstention"]["num_questions"] > 0
    assert set(figures["conditions"]["persistence"]["numeric_error"]) >= {"mean/t2m", "mean/msl"}
    assert 0 < figures["train_seconds"] <= figures["total_seconds"]
    assert figures["train_seconds"] == figures["training"]["seconds"]
    assert figures["training"]["steps"] == 4
    assert figures["training"]["backbone"]["content_hash"]
    splits = [figures["data"]["splits"][name] for name in ("train", "validation", "test")]
    assert splits == sorted(splits)
    assert {"system", "processor", "cores"} <= set(figures["machine"])
    assert figures["date"]

    assert (output / "map.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "model" / "manifest.json").is_file()
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"{figures['fact_f1']['true']:.3f}" in page
    assert 1 <= page.count("<article") <= 10
    assert page.count("Where the words looked") >= 1  # from the model that was just asked
    printed = capsys.readouterr().out
    assert printed.rstrip().splitlines()[-1].endswith(f"report {output / 'report.html'}")
    for words in (
        "true field",
        "scored against the field shown",
        "scored against the original",
        "prior_guesser",
        "mean t2m [°C]",
        "abstains in",
        "verdict",
        "Some answers",
        "map.png",
    ):
        assert words in printed


def test_a_mistake_is_one_line(tmp_path, overrides, capsys):
    assert demo.main(["--output", str(tmp_path / "run"), "--set", "training.stepz=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
