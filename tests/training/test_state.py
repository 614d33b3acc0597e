"""Optimizer and generators come back bit for bit, and nothing is pickled."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from climafuse.errors import CheckpointError
from climafuse.training.config import TrainingConfig
from climafuse.training.optim import make_optimizer
from climafuse.training.state import (
    load_optimizer,
    load_random,
    random_state,
    read_state,
    save_optimizer,
    save_random,
    write_state,
)


def stepped(toolbox: SimpleNamespace) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = toolbox.StandIn()
    optimizer = make_optimizer(model, TrainingConfig())
    batch = toolbox.collate([toolbox.Windows(4)[number] for number in range(4)])
    batch.pop("sample")
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
    return model, optimizer


def test_optimizer_round_trip_is_exact(tmp_path: Path, toolbox: SimpleNamespace) -> None:
    model, optimizer = stepped(toolbox)
    optimizer.param_groups[0]["lr"] = 0.1 + 0.2  # a float without a short decimal
    groups = json.loads(json.dumps(save_optimizer(tmp_path, optimizer, model)))
    fresh = make_optimizer(model, TrainingConfig())
    load_optimizer(tmp_path, groups, fresh, model)
    for parameter, state in optimizer.state.items():
        restored = fresh.state[parameter]
        assert restored.keys() == state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(restored[key], state[key]) for key in state)
    strip = lambda group: {key: value for key, value in group.items() if key != "params"}  # noqa: E731
    assert [strip(group) for group in fresh.param_groups] == [
        strip(group) for group in optimizer.param_groups
    ]


def test_optimizer_of_another_model_is_refused(tmp_path: Path, toolbox: SimpleNamespace) -> None:
    model, optimizer = stepped(toolbox)
    groups = save_optimizer(tmp_path, optimizer, model)
    other = toolbox.StandIn()
    other.fusions["7"] = type(other.fusions["0"])()
    with pytest.raises(CheckpointError, match=r"fusions\.7\.gate"):
        load_optimizer(tmp_path, groups, make_optimizer(other, TrainingConfig()), other)
    other = toolbox.StandIn()
    other.encoder = torch.nn.Linear(5, 8)  # same names, another shape
    with pytest.raises(CheckpointError, match=r"\[8, 5\].*\[8, 4\]"):
        load_optimizer(tmp_path, groups, make_optimizer(other, TrainingConfig()), other)


def test_generators_continue_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[float, ...]:
        return random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(()).item()

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        random.gauss(), np.random.randn()  # each keeps the second of a pair of normal numbers
        rest = json.loads(json.dumps(save_random(tmp_path, [random_state()])))
        expected = draw()
        draw()
        load_random(tmp_path, rest)
        assert draw() == expected
    finally:
        random.setstate(before[0]), np.random.set_state(before[1]), torch.set_rng_state(before[2])


def test_state_file_keeps_every_bit_and_refuses_nan(tmp_path: Path) -> None:
    names = ("step", "settings", "identity", "loss", "optimizer", "scheduler", "random")
    content = {**dict.fromkeys(names), "seconds": 0.1 + 0.2}
    write_state(tmp_path, content)
    assert read_state(tmp_path) == {**content, "seconds": 0.30000000000000004}
    del content["identity"]  # as before it was recorded what a run is made of
    write_state(tmp_path, content)
    with pytest.raises(CheckpointError, match=r"no identity\. Resume with the version of climafuse"):
        read_state(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        write_state(tmp_path, {"rate": float("nan")})


def test_a_saved_model_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint-N"):
        read_state(tmp_path)
