"""What a run keeps for itself is written by nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from climafuse.errors import UsageError
from climafuse.training.own_files import check_not_of_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for folder in (
        "run/model",
        "run/checkpoint-8",
        "run/evaluation/controls/regressor/model",
        "elsewhere/evaluation",
    ):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("model", "checkpoint-8"):
        for name in ("manifest.json", "config.json"):
            (tmp_path / "run" / folder / name).touch()
    for name in ("run.json", "log.jsonl", "metrics.json", "report.html", "evaluation/evaluation.json"):
        (tmp_path / "run" / name).touch()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name",
    [
        "run.json", "log.jsonl", "metrics.json", "evaluation/evaluation.json", "evaluation/mine.json",
        "evaluation/controls/regressor/model/mine.json", "model/config.json", "model/mine.json",
        "checkpoint-8/deep/mine.json", "../elsewhere/../run/run.json",
    ],
)  # fmt: skip
def test_a_file_of_a_run_is_refused(run: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_not_of_run(run / name, "--json")
    assert caught.value.argument == "--json"
    assert str(run / name) in str(caught.value.received)


@pytest.mark.parametrize(
    "name",
    ["figures.json", "report.html", "result.json", "../run.json", "../elsewhere/evaluation/evaluation.json"],
)
def test_any_other_is_not(run: Path, name: str) -> None:
    check_not_of_run(run / name, "--json")


def test_a_run_is_found_behind_a_link_and_without_a_model(run: Path, tmp_path: Path) -> None:
    (run / "model").rename(tmp_path / "moved")
    (tmp_path / "link.json").symlink_to(run / "evaluation" / "evaluation.json")
    for path in (run / "run.json", tmp_path / "link.json", tmp_path / "moved" / "config.json"):
        with pytest.raises(UsageError):
            check_not_of_run(path, "--json")
