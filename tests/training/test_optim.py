"""Parameter groups, schedule and gradient norms against hand arithmetic."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from climafuse.errors import TrainingError
from climafuse.training.config import TrainingConfig
from climafuse.training.optim import (
    gradient_norms,
    is_gate,
    make_optimizer,
    make_scheduler,
    parameter_groups,
    schedule_factor,
    trainable_parts,
)


def names_by_group(model: nn.Module, config: TrainingConfig) -> dict[str, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[p] for p in group["params"]} for group in parameter_groups(model, config)}  # type: ignore


def test_groups_of_the_stand_in(toolbox: SimpleNamespace) -> None:
    config = TrainingConfig(learning_rate=1e-3, gate_learning_rate_scale=20.0, weight_decay=0.1)
    model = toolbox.StandIn()
    assert names_by_group(model, config) == {
        "matrices": {"encoder.weight", "fusions.0.project.weight", "fusions.3.project.weight"},
        "vectors": {"encoder.bias"}
        | {
            f"fusions.{site}.{name}"
            for site in (0, 3)
            for name in ("norm.weight", "norm.bias", "project.bias")
        },
        "gates": {"fusions.0.gate", "fusions.3.gate"},
    }
    matrices, vectors, gates = parameter_groups(model, config)
    assert (matrices["lr"], matrices["weight_decay"]) == (1e-3, 0.1)
    assert (vectors["lr"], vectors["weight_decay"]) == (1e-3, 0.0)
    assert (gates["lr"], gates["weight_decay"]) == (0.02, 0.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fusions.3.gate", True),
        ("fusions.3.attention_gate", True),
        ("gates", True),
        ("encoder.mlp.gate_proj.weight", False),
        ("encoder.gate.weight", False),
        ("gateau", False),
    ],
)
def test_what_is_a_gate(name: str, expected: bool) -> None:
    assert is_gate(name) is expected


def test_embeddings_and_wide_norms_are_not_decayed() -> None:
    model = nn.ModuleDict(
        {"positions": nn.Embedding(5, 3), "norm": nn.LayerNorm((2, 3)), "mix": nn.Linear(3, 3)}
    )
    groups = names_by_group(model, TrainingConfig())
    assert groups["matrices"] == {"mix.weight"}
    assert groups["vectors"] == {"positions.weight", "norm.weight", "norm.bias", "mix.bias"}


def test_nothing_trainable_and_half_precision_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.to(torch.bfloat16)
    with pytest.raises(TrainingError, match=r"weight: expected float32.*bfloat16"):
        parameter_groups(model, TrainingConfig())
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="frozen throughout"):
        parameter_groups(model, TrainingConfig())


def test_schedule_by_hand() -> None:
    options: dict[str, Any] = {"steps": 12, "warmup": 4, "schedule": "cosine", "minimum": 0.2}
    factor = lambda step: schedule_factor(step, **options)  # noqa: E731
    # Warmup: 1/4, 2/4, 3/4, 4/4. Then 8 steps of cosine from 1 to 0.2.
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    # Half-way, cos(π/2) = 0: 0.2 + 0.8 / 2 = 0.6. A quarter: 0.2 + 0.8 · (1 + √½) / 2.
    assert factor(8) == pytest.approx(0.6)
    assert factor(6) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert factor(12) == pytest.approx(0.2)
    assert factor(50) == pytest.approx(0.2)
    options["schedule"] = "linear"
    assert factor(6) == pytest.approx(1 - 0.8 * 0.25)
    options["schedule"] = "constant"
    assert factor(11) == 1.0


def test_schedule_by_seconds_follows_what_is_further_ahead() -> None:
    options: dict[str, Any] = {"steps": 100, "warmup": 10, "schedule": "linear", "minimum": 0.0}
    on_time = schedule_factor(55, **options)
    assert schedule_factor(55, time_fraction=0.3, **options) == on_time
    # Step 20 of 100 when 55 % of the time is gone is as far on as step 55.
    assert schedule_factor(20, time_fraction=0.55, **options) == pytest.approx(on_time)
    assert schedule_factor(20, time_fraction=1.0, **options) == 0.0
    # Warmup too: step 0 at 4 % of the time is step 4.
    assert schedule_factor(0, time_fraction=0.04, **options) == pytest.approx(0.5)


def test_scheduler_scales_every_group_and_reads_the_clock_only_by_seconds(toolbox: SimpleNamespace) -> None:
    config = TrainingConfig(
        steps=10, warmup_steps=2, learning_rate=0.1, gate_learning_rate_scale=10.0, schedule="linear"
    )
    optimizer = make_optimizer(toolbox.StandIn(), config)

    def clock() -> float:
        raise AssertionError("a schedule by steps must not depend on time")

    scheduler = make_scheduler(optimizer, config, clock)
    # First of 2 warmup steps: half of 0.1, 0.1 and, for gates, 1.0.
    assert scheduler.get_last_lr() == [0.05, 0.05, 0.5]

    config = TrainingConfig(
        steps=10, warmup_steps=0, learning_rate=0.1, schedule="linear", schedule_by="seconds", max_seconds=60,
        minimum_learning_rate=0.0, gate_learning_rate_scale=10.0,
    )  # fmt: skip
    optimizer = make_optimizer(toolbox.StandIn(), config)
    scheduler = make_scheduler(optimizer, config, lambda: 45.0)
    assert scheduler.get_last_lr() == pytest.approx([0.025, 0.025, 0.25])


def test_gradient_norms_by_part() -> None:
    model = nn.ModuleDict(
        {"encoder": nn.Linear(2, 1), "sites": nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])}
    )
    model["encoder"].bias.requires_grad_(False)
    parts = trainable_parts(model)
    assert list(parts) == ["encoder", "sites.0", "sites.1"]
    model["encoder"].weight.grad = torch.tensor([[3.0, 4.0]])  # 5
    model["sites"][0].weight.grad = torch.tensor([[12.0]])  # 12; its bias has no gradient
    by_part, total = gradient_norms(parts)
    assert by_part.tolist() == [5.0, 12.0, 0.0]
    assert total.item() == 13.0
