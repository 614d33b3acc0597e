"""Studies of processes that are fast and harmless (`fake_worker.py`): killed, crashed, told to end, resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from climafuse.errors import CheckpointError, OutputError, UsageError
from climafuse.scaling import runner
from climafuse.scaling.records import read_results
from climafuse.scaling.runner import Moment, run_study
from climafuse.scaling.study import Study
from climafuse.training.config import TrainingConfig, read_yaml

ROOT = Path(__file__).parents[2]
WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
TEXT = """
name: small
budget: {steps: 3}
grid:
  fusion.name: [film, cross_attention, gated_addition]
stages:
  - {best: 1, grid: {training.learning_rate: [0.125]}}
  - {best: 1, distinct: [fusion.name], grid: {training.seed: [1]}}
"""
STUDY = f"""
import sys
from climafuse.scaling.runner import run_study
from climafuse.scaling.study import Study
from climafuse.training.config import read_yaml
from climafuse.errors import ClimafuseError
study = read_yaml(Study, {TEXT!r})
try:
    run_study(study, sys.argv[1], worker={WORKER!r}, say=lambda line: print(line, flush=True))
except ClimafuseError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(folder: Path, text: str = TEXT, **options: Any) -> dict[str, Any]:
    lines: list[str] = []
    return run_study(read_yaml(Study, text), folder, worker=WORKER, say=lines.append, **options)


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STUDY, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


def journal(folder: Path) -> list[str]:
    path = folder / "journal"
    return path.read_text().splitlines() if path.is_file() else []


def wait_for(folder: Path, lines: int) -> None:
    until = time.monotonic() + 20
    while len(journal(folder)) < lines and time.monotonic() < until:
        time.sleep(0.01)


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on when and how long."""
    runs = [
        {key: value for key, value in r.items() if key not in ("seconds", "date")} for r in results["runs"]
    ]
    return {**{key: value for key, value in results.items() if key != "date"}, "runs": runs}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        run(folder)
    return folder


def test_every_run_once_and_the_best_with_more_seeds(whole: Path) -> None:
    results = read_results(whole)
    assert results["complete"]
    assert len(results["runs"]) == results["num_planned"] == 3 + 1 + 1
    # cross_attention has .9, less at another rate; see QUALITY in fake_worker.py.
    later = [(record["stage"], *record["settings"].values()) for record in results["runs"][3:]]
    assert later == [
        (1, "cross_attention", 0.125, 0),
        (2, "cross_attention", TrainingConfig().learning_rate, 1),
    ]
    for record in results["runs"]:
        assert json.loads((whole / "runs" / record["id"] / "result.json").read_text()) == record
        assert record["figures"]["training"]["steps"] == 3
    counts = Counter(line.split()[1] for line in journal(whole))
    assert counts == {"begins": 5, "step": 15, "ends": 5}


def test_a_study_that_is_done_runs_nothing(whole: Path) -> None:
    before = journal(whole)
    assert timeless(run(whole)) == timeless(read_results(whole))
    assert journal(whole) == before


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_equals_uninterrupted(
    whole: Path, tmp_path: Path, thorough: bool
) -> None:
    """SIGKILL to the study, so that it can tell nobody; the run that it leaves behind must not meet the next."""
    random.seed(0)
    for _ in range(20 if thorough else 2):
        process = start(tmp_path, STEP_SECONDS="0.05")
        wait_for(tmp_path, len(journal(tmp_path)) + random.randint(1, 4))
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.communicate()
    process = start(tmp_path)
    process.communicate()
    assert process.returncode == 0
    assert timeless(read_results(tmp_path)) == timeless(read_results(whole))
    lines = Counter(journal(tmp_path))
    # No run twice, and no two at once: every step was done by one process, though a run may have begun several times.
    assert {line for line in lines if "begins" not in line} == {
        line for line in journal(whole) if "begins" not in line
    }
    assert all(count == 1 for line, count in lines.items() if " step " in line)
    assert sum(count for line, count in lines.items() if "begins" in line) > 5  # some were interrupted


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 75), pytest.param("SIGINT", None, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_study_and_its_run_and_another_goes_on(
    whole: Path, tmp_path: Path, name: str, code: int | None
) -> None:
    process = start(tmp_path, STEP_SECONDS="0.3")
    wait_for(tmp_path, 2)
    process.send_signal(signal.Signals[name])
    process.communicate(timeout=20)
    assert process.returncode != 0
    if code is not None:
        assert process.returncode == code
    said = journal(tmp_path)
    time.sleep(0.5)
    assert journal(tmp_path) == said  # nobody goes on
    assert not list(
        (tmp_path / "runs").glob("*/result.json")
    )  # what was interrupted is neither done nor failed
    assert timeless(run(tmp_path)) == timeless(read_results(whole))


def test_a_crash_is_one_failed_run_with_its_log(tmp_path: Path) -> None:
    text = "name: small\nbudget: {steps: 1}\ngrid: {training.learning_rate: [0.25, 0.5, 0.75, 0.0]}"
    results = run(tmp_path, text)
    records = {record["settings"]["training.learning_rate"]: record for record in results["runs"]}
    assert [records[rate]["status"] for rate in (0.25, 0.5, 0.75, 0.0)] == ["failed"] * 3 + ["finished"]
    assert records[0.25]["exit_code"] == -signal.SIGABRT
    assert records[0.5]["exit_code"] == 1
    assert records[0.5]["why"] == "error: fields: expected some; received none. Give some."
    assert "no figures" in records[0.75]["why"]
    log = tmp_path / "runs" / records[0.5]["id"] / "worker.log"
    assert "expected some" in log.read_text()
    before = journal(tmp_path)
    run(tmp_path, text)  # failed runs are done, too,
    assert journal(tmp_path) == before
    run(tmp_path, text, retry=True)  # unless they shall be tried again
    assert Counter(journal(tmp_path)[len(before) :]) == {
        f"{records[r]['id']} begins": 1 for r in (0.25, 0.5, 0.75)
    }


def test_results_tell_how_far_a_study_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments: list[Moment] = []
    monkeypatch.setattr(runner, "TICK", 0.05)
    monkeypatch.setenv("STEP_SECONDS", "0.2")
    text = "name: small\nbudget: {steps: 1}\ngrid: {training.seed: [0, 1]}"

    def look(moment: Moment) -> None:
        moments.append(moment)
        results = read_results(tmp_path)
        assert not results["complete"]
        assert len(results["runs"]) == moment.done

    results = run(tmp_path, text, progress=look)
    assert {moment.done for moment in moments} == {0, 1}
    assert {moment.total for moment in moments} == {2}
    each = results["runs"][0]["seconds"]
    for moment in moments:
        if moment.done == 0:
            assert moment.seconds_left is None
        if moment.done == 1:  # the rest of this one
            assert moment.seconds_left == pytest.approx(max(each - moment.seconds, 0))


def test_one_study_a_folder_and_one_process_at_a_time(tmp_path: Path) -> None:
    text = "name: small\nbudget: {steps: 1}\ngrid: {training.seed: [0]}"
    run(tmp_path, text)
    with pytest.raises(OutputError, match="study 'small'"):
        run(tmp_path, text.replace("small", "other"))
    process = start(tmp_path, STEP_SECONDS="0.5")
    wait_for(tmp_path, 4)
    with pytest.raises(UsageError, match="no other process"):
        run(tmp_path, text)
    process.kill()
    process.communicate()
    with pytest.raises(CheckpointError, match="climafuse scale run"):
        read_results(tmp_path / "runs")
