"""The plan of a small run against what a process of its own takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from climafuse.planning import base
from tests.training.runs import save_backbone

CODE = """
import json, sys, torch
torch.set_num_threads(1)
from scripts.benchmarks.plan import Case, compared
settings = {"sites": [2], "windows": 64, "texts_per_window": 4, "length": 48, "dtype": "float32"}
found = compared(Case(sys.argv[1], settings, 3))
print(json.dumps({key: found[key] for key in ("planned_peak_gb", "peak_gb", "base_gb")}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_is_within_five_percent(tmp_path):
    backbone = save_backbone(tmp_path / "backbone")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "CLIMAFUSE_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", CODE, str(backbone)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=600)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned_peak_gb"] / found["peak_gb"] == pytest.approx(1, abs=0.05)
    assert found["peak_gb"] > 1.2 * found["base_gb"]  # not the process alone


def test_where_nothing_can_be_measured_a_process_is_typical(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path))
    assert base.process_base(("json",)) == base.TYPICAL
    measured = base.Base(1, 2, 3)
    monkeypatch.setattr(base, "_measured", lambda modules, tokenizer: measured)
    assert base.process_base(("json",)) == measured
    monkeypatch.setattr(base, "_measured", lambda modules, tokenizer: None)
    assert base.process_base(("json",)) == measured  # remembered
    assert base.process_base(("json", "re")) == base.TYPICAL  # of other imports
    assert measured.total == 6
