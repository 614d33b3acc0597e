"""The study of fine-tuning: each example once, and nothing but their number and what is trained differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from climafuse.scaling.study import first_runs, load_study


def test_it_is_what_it_says() -> None:
    runs = first_runs(load_study(Path(__file__).parents[2] / "examples" / "studies" / "finetuning.yaml"))
    trained, rest = [], set()
    for run in runs:
        config = run.config
        assert config.training.steps * config.training.windows_per_step == config.data.train_windows
        assert config.facts.questions_per_window == 1
        assert config.training.evaluate_first
        kind = "lora" if config.backbone.lora else config.backbone.trainable
        trained.append((kind, config.backbone.dtype, config.data.train_windows))
        content = dataclasses.asdict(config)
        for section, name in (("data", "train_windows"), ("training", "steps")):
            content[section].pop(name)
        for name in ("lora", "trainable", "dtype"):
            content["backbone"].pop(name)
        rest.add(str(content))
    assert len(rest) == 1
    numbers = (1000, 2000, 3000)
    kinds = ((None, "bfloat16"), ("lora", "bfloat16"), ("all", "float32"))
    expected = [(*kind, number) for kind in kinds for number in numbers]
    assert trained == [*expected, ("all", "bfloat16", 1000)]
