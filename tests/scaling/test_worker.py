"""A real run on a tiny backbone: what it leaves, and that it is the same when it was killed on the way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from climafuse.scaling.records import read_results
from climafuse.scaling.runner import run_study
from climafuse.scaling.study import Study, first_runs
from climafuse.scaling.worker import CONFIG_FILE, train_and_evaluate
from climafuse.training.config import read_yaml
from tests.training.runs import save_backbone, settings, write_climate

ROOT = Path(__file__).parents[2]
TIMES = ("peak_memory_gb", "seconds_per_step", "train_seconds", "answers_per_second", "seconds", "date")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study of one tiny run in eight steps."""
    place = tmp_path_factory.mktemp("place")
    base = settings(write_climate(place / "fields.nc"), save_backbone(place / "backbone"), place / "unused")
    base["output"] = {"save_interval": 2, "tensorboard": False}
    return yaml.safe_dump(
        {"name": "tiny", "base": base, "runs": [{"training.seed": 0}, {"training.seed": 1}]}
    )


@pytest.fixture(scope="module")
def place(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first run was done, in this process."""
    folder = tmp_path_factory.mktemp("run")
    (folder / CONFIG_FILE).write_text(first_runs(read_yaml(Study, text))[0].config.to_yaml())
    (folder / "figures.json").write_text(json.dumps(train_and_evaluate(folder)))
    return folder


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key not in TIMES}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def test_figures_are_those_of_the_run_and_of_its_evaluations(place: Path) -> None:
    figures = json.loads((place / "figures.json").read_text())
    record = json.loads((place / "run.json").read_text())
    assert figures["training"]["steps"] == 8
    assert figures["training"]["trainable_parameters"] == record["trainable_parameters"] > 0
    lines = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()]
    # 4 windows a step; log lines tell windows a second.
    rates = sorted(line["samples_per_second"] for line in lines if "samples_per_second" in line)
    assert 4 / rates[-1] <= figures["training"]["seconds_per_step"] <= 4 / rates[0]
    assert figures["training"]["loss_before"] is None  # `training.evaluate_first` is not set
    assert figures["training"]["peak_memory_gb"] == max(line.get("peak_memory_gb", 0) for line in lines)
    for split, name in (("validation", "validation.json"), ("test", "test.json")):
        evaluation = json.loads((place / "evaluation" / name).read_text())
        assert evaluation["data"]["split"] == split
        for condition in ("true", "shuffled", "shown", "prior", "oracle"):
            assert figures[split]["fact_f1"][condition] == evaluation["fact_f1"][condition]
        assert figures[split]["conditions"]["true"]["token_loss"] > 0
    assert figures["generation"]["answers_per_second"] > 0


def test_what_is_done_is_not_done_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("climafuse.training.pipeline.run", never)
    before = json.loads((place / "figures.json").read_text())
    assert timeless(train_and_evaluate(place)) == timeless(before)


@pytest.mark.slow
def test_killed_at_random_moments_a_study_is_the_uninterrupted_one(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thorough: bool
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "study.yaml").write_text(text)
    run_study(read_yaml(Study, text), tmp_path / "whole", say=print)
    command = [sys.executable, "-m", "climafuse", "scale", "run", "study.yaml", "--output", "killed"]
    took = sum(record["seconds"] for record in read_results(tmp_path / "whole")["runs"])
    random.seed(1)
    for _ in range(6 if thorough else 3):
        process = subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ), stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.2, 0.7) * took)
        process.kill()
        process.wait()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    whole, killed = (timeless(read_results(tmp_path / name)) for name in ("whole", "killed"))
    assert killed == whole
    assert killed["complete"]
    assert (tmp_path / "killed" / "table.md").is_file()
