"""A disk that is full, fails or is read-only, at every operation: what was saved before stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
QUICK = ("folder replaced",)
THOROUGH = (*QUICK, "folder", "rotation", "log", "tensorboard", "checkpoint", "model", "store")
ERRORS = ("ENOSPC", "EIO", "EROFS")

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None,
    reason="faults are put between a process and the C library of Linux by a compiled file",
)


@pytest.fixture(scope="module")
def tried(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Any]:
    """What `tests/training/disk.py` found, by task and error."""
    folder = tmp_path_factory.mktemp("disk")
    library = folder / "faults.so"
    source = ROOT / "tests" / "training" / "faults.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    tasks = THOROUGH if request.config.option.thorough else QUICK
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.disk", library, folder, *tasks],
        env={**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {(line["task"], line["error"]): line for line in lines}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("error", ERRORS)
    metafunc.parametrize("task", THOROUGH if metafunc.config.option.thorough else QUICK)


def test_every_operation_may_fail(
    tried: dict[tuple[str, str], Any], cell: Any, task: str, error: str
) -> None:
    found = tried[task, error]
    cell("disk", task, error, found["cases"])
    assert found["wrong"] == []
    assert found["cases"] > 5
