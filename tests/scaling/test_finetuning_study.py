"""The study of fine-tuning: each example once, and nothing but their number and what is trained differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from climafuse.scaling.study import Study, first_runs, load_study, plan
from climafuse.scaling.table import table_of
from climafuse.training.config import LoraConfig, read_yaml


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


def test_runs_and_rows_tell_what_is_trained() -> None:
    """Adapters are a section: named in the label of a run, told in a column, and read again by a later stage."""
    study = read_yaml(Study, STAGED)
    runs = first_runs(study)
    assert [run.label for run in runs] == ["steps 5, seed 0", "steps 5, lora, seed 0", "steps 5, all, seed 0"]
    figures = {run.id: {"validation": {"loss": number}} for number, run in enumerate(runs)}
    later = plan(study, figures)[3:]
    assert [run.config.backbone.lora for run in later] == [None, LoraConfig(rank=2)]
    records = [
        {"status": "finished", "settings": run.settings, "label": run.label, "id": run.id,
         "figures": {"training": {"loss_before": 2.5, "validation_loss": 1.25, "peak_memory_gb": 3.0}}}
        for run in runs
    ]  # fmt: skip
    found = {"study": {"metric": "training.validation_loss", "goal": "lowest"}, "runs": records}
    header, cells = table_of(found)
    assert header == ["", "lora", "trainable", "seeds", "loss before", "validation loss", "peak GB"]
    assert sorted(row[1:] for row in cells) == sorted(
        [name, kind, "1", "2.500", "1.250", "3.00"]
        for name, kind in (("–", "–"), ("rank 2, alpha 16, dropout 0", "–"), ("–", "all"))
    )


STAGED = """
name: staged
base: {training.steps: 9}
runs:
  - {training.steps: 5}
  - {training.steps: 5, backbone.lora: {rank: 2}}
  - {training.steps: 5, backbone.trainable: all}
metric: validation.loss
goal: lowest
stages:
  - {best: 2, distinct: [backbone.lora, backbone.trainable], grid: {training.seed: [1]}}
"""
