"""What several tables of this folder begin with."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from climafuse.cli.app import app
from climafuse.scaling.runner import run_study
from climafuse.scaling.study import load_study

STUDY = """\
name: small
base: {training: {learning_rate: 1e-3, steps: 2}}
grid: {fusion.name: [film, gated_addition]}
"""


@pytest.fixture(scope="session")
def proven(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated without controls, in run/, and a study of two runs, in study/. To be copied."""
    folder = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("proven") / "all"))
    found = CliRunner().invoke(app, ["evaluate", str(folder / "run"), "--no-controls"])
    assert found.exit_code == 3, found.output
    (folder / "study.yaml").write_text(STUDY)
    fake = (sys.executable, "-m", "tests.scaling.fake_worker")
    run_study(load_study(folder / "study.yaml"), folder / "study", worker=fake, say=lambda line: None)
    return folder
