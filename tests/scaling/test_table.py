"""Table and figure of made-up results, worked out by hand."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from typer.testing import CliRunner

from climafuse.cli.app import app
from climafuse.errors import UsageError
from climafuse.json_file import read_object
from climafuse.scaling.plots import plot_study
from climafuse.scaling.runner import _write_json
from climafuse.scaling.table import markdown, rows_of, table_of, winner

runner = CliRunner()


def record(
    fusion: str, site: Any, seed: int, validation: float | None, test: float = 0.5, **more: Any
) -> dict[str, Any]:
    figures = {
        "training": {
            "steps": 100,
            "seconds_per_step": 0.5,
            "trainable_parameters": 1000,
            "train_seconds": 50.0,
        },
        "validation": {"fact_f1": {"true": validation}},
        "test": {"fact_f1": {"true": test, "shuffled": 0.2, "prior": 0.4}},
    }
    settings = {
        "fusion.name": fusion,
        "fusion.sites": site,
        "fusion.options": {"a": fusion},
        "training.seed": seed,
    }
    made = {
        "id": f"{fusion}{site}{seed}",
        "label": f"{fusion}, {site}",
        "status": "finished",
        "settings": settings,
    }
    return {**made, "figures": figures, "seconds": 60.0, "stage": 0}


def results(*records: dict[str, Any], goal: str = "highest") -> dict[str, Any]:
    return {
        "format": 1,
        "study": {
            "name": "small",
            "question": "Which one?",
            "metric": "validation.fact_f1.true",
            "goal": goal,
            "budget": {"seconds": 50.0, "steps": None},
        },
        "complete": True,
        "num_planned": len(records),
        "date": "2026-11-22T12:00:00+00:00",
        "machine": {"system": "Linux", "processor": "a processor", "cores": 2},
        "runs": list(records),
    }


FAILED = {**record("prefix", "input", 0, None), "status": "failed", "why": "killed | by memory"}
del FAILED["figures"]
FOUND = results(
    record("film", 15, 0, 0.8, test=0.9),
    record("cross_attention", "output", 0, 0.7, test=0.60),
    record("cross_attention", "output", 1, 0.6, test=0.66),
    record("cross_attention", "output", 2, 0.5, test=0.63),
    FAILED,
)


def chosen(found: dict[str, Any]) -> str | None:
    best = winner(rows_of(found), found["study"]["metric"])
    return None if best is None else best.settings["fusion.name"]


def test_rows_are_runs_but_for_the_seed_the_best_first() -> None:
    rows = rows_of(FOUND)
    assert [(row.settings["fusion.name"], len(row.records), len(row.failed)) for row in rows] == [
        ("film", 1, 0), ("cross_attention", 3, 0), ("prefix", 0, 1)
    ]  # fmt: skip
    assert rows[1].mean("validation.fact_f1.true") == pytest.approx(0.6)
    lowest = rows_of({**FOUND, "study": {**FOUND["study"], "goal": "lowest"}})
    assert [row.settings["fusion.name"] for row in lowest] == ["cross_attention", "film", "prefix"]


def test_of_those_with_most_seeds_the_best_is_chosen_whatever_the_test_says() -> None:
    assert chosen(FOUND) == "cross_attention"
    other = copy.deepcopy(FOUND)
    for row in other["runs"][:4]:
        row["figures"]["test"]["fact_f1"]["true"] = 0.0
    assert chosen(other) == "cross_attention"
    assert chosen(results(FAILED)) is None


def test_the_table_has_means_and_ranges() -> None:
    header, cells = table_of(FOUND)
    film, cross, prefix = (dict(zip(header, row, strict=True)) for row in cells)
    assert header[:4] == ["", "fusion", "sites", "seeds"]
    assert "field shown" not in header  # nobody measured it
    assert film["test F1"] == "0.900"
    assert cross["test F1"] == "0.630 (0.600 to 0.660)"
    assert cross["s/step"] == "0.500"  # the same for all seeds
    assert (film[""], cross[""]) == ("", "*")
    assert (cross["seeds"], prefix["seeds"], prefix["test F1"]) == ("3", "0, 1 failed", "–")
    text = markdown(FOUND)
    assert "| * | cross_attention | output | 3 |" in text
    assert "5 of 5 runs done, 50 seconds of training each" in text
    assert "Failed: prefix, input" in text


def test_the_figure_shows_what_differs(tmp_path: Path) -> None:
    found = copy.deepcopy(FOUND)
    found["runs"][0]["figures"]["training"]["seconds_per_step"] = 2.0
    plot_study(found, [tmp_path / "a.png", tmp_path / "a.svg"])
    assert matplotlib.image.imread(tmp_path / "a.png").shape[2] == 4
    svg = (tmp_path / "a.svg").read_text()
    ElementTree.fromstring(svg)
    comments = [part.split("-->")[0].strip() for part in svg.split("<!--")]  # matplotlib notes texts so
    for words in ("seconds a training step", "cross attention", "at block 15", "best guesser", "chosen"):
        assert words in comments
    for words in ("answers a second", "trainable parameters"):  # the same for all
        assert words not in comments
    with pytest.raises(UsageError, match="finished run"):
        plot_study(results(FAILED), [tmp_path / "b.png"])


def test_the_command_line_tells_and_draws(tmp_path: Path) -> None:
    _write_json(tmp_path / "results.json", FOUND)
    told = runner.invoke(app, ["scale", "table", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert "cross_attention" in told.output
    assert (tmp_path / "table.md").read_text() == markdown(FOUND)
    drawn = runner.invoke(app, ["scale", "plot", str(tmp_path)])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert read_object(tmp_path / "results.json") == FOUND
    nothing = runner.invoke(app, ["scale", "table", str(tmp_path / "none")])
    assert nothing.exit_code == 1
    assert nothing.output.startswith("error: ")


def test_a_dry_run_lists_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yaml"
    text = "name: small\nbudget: {seconds: 60}\ngrid: {fusion.name: [film, cross_attention]}\n"
    path.write_text(text + "stages: [{best: 1, grid: {training.seed: [1, 2]}}]")
    told = runner.invoke(app, ["scale", "run", str(path), "--dry-run"])
    assert told.exit_code == 0, told.output
    assert "and at most 2 more of the best" in told.output
    assert "4 minutes in all" in told.output  # four runs of one minute
    path.write_text(text.replace("[film,", "[flim,"))
    wrong = runner.invoke(app, ["scale", "run", str(path)])
    assert wrong.exit_code == 2
    assert "film" in wrong.output
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.yaml"]


def test_random_weights_are_called_so_in_table_and_figure(tmp_path: Path) -> None:
    for random in (False, True):
        run = record("film", 15, 0, 0.8)
        run["figures"]["training"]["random_weights"] = random
        found = results(run)
        plot_study(found, [tmp_path / "figure.svg"])
        for text in (markdown(found), (tmp_path / "figure.svg").read_text()):
            assert ("random, for capacity only" in text) == random
