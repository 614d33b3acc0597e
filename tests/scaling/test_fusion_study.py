"""The fusion study is what it says: every combination once, and nothing but mechanism, site and their sizes differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from climafuse.backbones.catalog import CATALOG
from climafuse.encoders import Channels
from climafuse.registry import ENCODERS, FUSIONS
from climafuse.scaling.study import first_runs, load_study, most_runs
from climafuse.training.config import RunConfig

HIDDEN = 576  # of SmolLM2-135M, which has 30 blocks


@pytest.fixture(scope="module")
def study():
    return load_study(Path(__file__).parents[2] / "examples" / "studies" / "fusion.yaml")


def test_every_mechanism_at_every_site_where_it_can_be(study):
    pairs = {(run.config.fusion.name, run.config.fusion.sites) for run in first_runs(study)}
    sites = ("input", 15, 25, "output")
    gated = {(name, site) for name in ("gated_addition", "cross_attention", "film") for site in sites}
    assert pairs == gated | {("prefix", "input")}
    ours = {
        name for name in FUSIONS if FUSIONS.get(name).__module__.startswith("climafuse.")
    }  # examples register more
    assert {name for name, _ in pairs} == ours
    assert most_runs(study) == 13 + 4 + 4


def test_trainable_parameters_are_equal(study):
    counts = {}
    for run in first_runs(study):
        config = run.config
        num = len(config.data.variables)
        encoder = ENCODERS.create(
            config.encoder.name,
            Channels(config.data.variables, (1.0,) * num, (0.0,) * num),
            **config.encoder.options,
        )
        fusion = FUSIONS.create(config.fusion.name, HIDDEN, encoder.width, **config.fusion.options)
        parts = [sum(p.numel() for p in part.parameters()) for part in (encoder, fusion)]
        counts[config.fusion.name] = sum(parts)
    assert max(counts.values()) <= 1.02 * min(counts.values()), counts
    assert max(counts.values()) <= 1.002 * min(counts.values()), counts  # as its text says


def test_nothing_else_differs(study):
    def rest(config):
        content = dataclasses.asdict(config)
        del content["fusion"]
        if config.fusion.sites != "output":  # where a gradient passes through the language model
            assert content["training"].pop("windows_per_step") == 2
        else:
            assert content["training"].pop("windows_per_step") == RunConfig().training.windows_per_step
        return content

    runs = [run.config for run in first_runs(study)]
    assert all(rest(config) == rest(runs[0]) for config in runs)
    default = RunConfig()
    fewer = dataclasses.replace(default.data, validation_windows=32, test_windows=32)
    alone = dataclasses.replace(default.backbone, num_threads=1)
    assert (runs[0].data, runs[0].facts, runs[0].backbone) == (fewer, default.facts, alone)
    assert runs[0].backbone.name in CATALOG
    assert runs[0].training.max_seconds == 300
    assert runs[0].training.schedule_by == "seconds"
    (rate,) = study.stages[0].grid["training.learning_rate"]
    assert rate == pytest.approx(runs[0].training.learning_rate / 3)
    assert study.metric.startswith("validation.")
