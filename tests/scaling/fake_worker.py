"""A run that takes no model: figures are a formula of its settings, and what it did stands in `journal` beside."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from climafuse.errors import ModelInputError
from climafuse.scaling.worker import CONFIG_FILE, serve
from climafuse.training.config import load_config

CRASHES, REFUSES, SILENT = 0.25, 0.5, 0.75  # learning rates
QUALITY = {"film": 0.5, "gated_addition": 0.7, "cross_attention": 0.9, "prefix": 0.6}


def work(folder: Path) -> dict[str, Any]:
    config = load_config(folder / CONFIG_FILE)
    rate, seed, name = config.training.learning_rate, config.training.seed, config.fusion.name
    _note(folder, "begins")
    if rate == CRASHES:
        os.abort()
    if rate == REFUSES:
        raise ModelInputError("fields", expected="some", received="none", remedy="Give some.")
    if rate == SILENT:
        os._exit(0)
    done = folder / "steps"  # as checkpoints: what was done is not done again
    for step in range(len(done.read_text()) if done.is_file() else 0, config.training.steps):
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        with done.open("a") as file:
            file.write("x")
        _note(folder, f"step {step}")
    _note(folder, "ends")
    f1 = QUALITY[name] - rate + 0.01 * seed
    return {
        "training": {
            "steps": config.training.steps, "seconds_per_step": 0.5 + QUALITY[name], "trainable_parameters": 1000,
            "train_seconds": 3.0, "sites": [str(config.fusion.sites)],
        },
        "validation": {"fact_f1": {"true": f1}},
        "test": {"fact_f1": {"true": f1 - 0.1, "shuffled": 0.2, "shown": f1 - 0.1, "prior": 0.3}},
        "generation": {"answers_per_second": 10.0},
    }  # fmt: skip


def _note(folder: Path, what: str) -> None:
    with (folder.parents[1] / "journal").open("a") as file:
        file.write(f"{folder.name} {what}\n")


if __name__ == "__main__":
    sys.exit(serve(work))
