"""Every fusion and every kind of site from a configuration file and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from climafuse.cli.app import app
from climafuse.model.inference import answer, load_model
from climafuse.training.pipeline import run
from tests.fusion.small import SMALL, changes_text
from tests.training.runs import make_config, save_backbone, settings, write_climate

Parts = tuple[Path, Path]
# As written in YAML and after `fusion.sites=` -> sites of a language model of four blocks, by hand.
SITES = {
    "input": ["input"],
    "output": ["output"],
    "2": ["2"],
    "[1, -1]": ["1", "3"],
    "{last: 2}": ["2", "3"],
    "{every: 2}": ["0", "2"],
    "[input, {last: 1}, output]": ["input", "3", "output"],
}


@pytest.fixture(autouse=True)
def _no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dry run tells of memory takes two seconds, and is no matter of where a fusion is named."""
    monkeypatch.setattr("climafuse.training.pipeline.planned_run", lambda *_: None)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("parts")
    return write_climate(folder / "fields.nc"), save_backbone(folder / "backbone")


def dry_run(parts: Parts, folder: Path, fusion: dict[str, Any], *overrides: str) -> Any:
    """What `climafuse train --dry-run` says."""
    content = settings(*parts, folder / "run")
    content["fusion"] = fusion
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    words = [word for override in overrides for word in ("--set", override)]
    return CliRunner().invoke(app, ["train", str(folder / "run.yaml"), "--dry-run", "--json", *words])


@pytest.mark.parametrize("sites", SITES)
def test_sites_in_a_file_and_on_the_command_line(sites: str, parts: Parts, tmp_path: Path) -> None:
    written = dry_run(parts, tmp_path, {"name": "film", "sites": yaml.safe_load(sites)})
    assert written.exit_code == 0, written.output
    given = dry_run(parts, tmp_path, {"name": "film", "sites": "output"}, f"fusion.sites={sites}")
    assert json.loads(given.stdout) == json.loads(written.stdout)
    assert json.loads(given.stdout)["sites"] == SITES[sites]


@pytest.mark.parametrize("name", [name for name in SMALL if " " not in name])
def test_every_fusion_in_a_file(name: str, parts: Parts, tmp_path: Path) -> None:
    sites = "output" if changes_text(name) else "input"
    found = dry_run(parts, tmp_path, {"name": name, "options": SMALL[name], "sites": sites})
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["sites"] == [sites]


def test_a_prefix_says_where_it_belongs(parts: Parts, tmp_path: Path) -> None:
    refused = dry_run(parts, tmp_path, {"name": "prefix"})  # the default site is the output
    assert refused.exit_code == 2
    assert "sites: expected input" in refused.stderr
    assert "received output" in refused.stderr
    assert "fusion.sites: input" in refused.stderr


def test_a_prefix_is_trained_saved_and_asked(parts: Parts, tmp_path: Path) -> None:
    told: list[str] = []
    fusion = {"name": "prefix", "options": SMALL["prefix"], "sites": "input"}
    config = make_config(*parts, tmp_path / "run", fusion=fusion, training={"learning_rate": 0.01})
    result = run(config, say=told.append)
    assert not any("stored" in line for line in told)  # below the input there is nothing to reuse
    losses = [
        line["loss"]
        for line in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
        if "loss" in line
    ]
    assert sum(losses[-3:]) < sum(losses[:3])
    reader = load_model(result["model"], max_new_tokens=4)
    time = "2026-03-10T12:00"
    found = answer(reader, parts[0], time=time, location="48.9,2.3", prompt="What is it?", attention=True)
    assert isinstance(found.text, str)
    assert found.attention is None  # words attend to it as to words, within the language model
