"""The hardened Trainer: what it computes, when it stops, what it leaves behind."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.trainer_callback import TrainerCallback

from climafuse.errors import CheckpointError, NonFiniteError, TrainingError
from climafuse.training.callbacks import RunClock, read_log
from climafuse.training.checkpoint import list_checkpoints, verify_checkpoint

Make = Callable[..., Any]


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Interrupt(TrainerCallback):
    """Ends a run after a step, once everything due at that step was saved, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_steps_equal_a_loop_written_by_hand(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace, precision: str
) -> None:
    """Accumulation, clipping, schedule, groups and data order against plain torch."""
    settings = {
        "steps": 7,
        "max_gradient_norm": 0.05,
        "schedule": "linear",
        "weight_decay": 0.3,
        "precision": precision,
        # Two microbatches and one of both are rounded alike only in float32.
        "accumulation": 2 if precision == "float32" else 1,
    }
    trainer = make_trainer(make_config(warmup_steps=3, minimum_learning_rate=0.0, **settings), length=10)
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model = copy.deepcopy(trainer.model)
    trainer.train()

    named = dict(model.named_parameters())
    groups = [
        {
            "params": [p for n, p in named.items() if n.endswith(("encoder.weight", "project.weight"))],
            "rate": 0.05,
        },
        {
            "params": [p for n, p in named.items() if n.endswith(("bias", "norm.weight"))],
            "rate": 0.05,
            "weight_decay": 0,
        },
        {"params": [p for n, p in named.items() if n.endswith("gate")], "rate": 0.5, "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.3, fused=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    # 10 samples, microbatches of 2, 2 a step: epochs of 4 + 4 + 2 samples.
    orders = []
    for epoch in range(3):
        sampler = toolbox.Shuffled(10)
        sampler.set_epoch(epoch)
        order = list(sampler)
        orders += [order[0:4], order[4:8], order[8:10]]
    # Warmup 1/3, 2/3, 1, then (7 − step) / 4.
    factors = [1 / 3, 2 / 3, 1.0, 1.0, 0.75, 0.5, 0.25]
    for numbers, factor in zip(orders[:7], factors, strict=True):
        batch = toolbox.collate([toolbox.Windows(10)[number] for number in numbers])
        batch.pop("sample")
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(**batch).loss
        loss.backward()  # the mean over all answer tokens of the step
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in trainable))
        for p in trainable:
            p.grad *= min(1.0, 0.05 / (norm + 1e-6))
        optimizer.step()
    for name, value in trainer.model.named_parameters():
        torch.testing.assert_close(value, named[name], rtol=2e-4, atol=2e-6, msg=name)
    lines = [line for line in read_log(trainer.output / "log.jsonl") if "loss" in line]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.05 * factor for factor in factors])


def test_frozen_weights_stay_as_they_are(make_trainer: Make) -> None:
    trainer = make_trainer()
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad
    }


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_read_ahead_where_no_loader_process_does(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace, accumulation: int, workers: int
) -> None:
    class ReadsAhead(toolbox.Windows):  # type: ignore[misc]
        def read(self, positions: list[int]) -> list[Any]:
            return [self[position] for position in positions]

        def expect(self, positions: list[int], samples: Any) -> None:
            expected.append(positions)

    expected: list[list[int]] = []
    config = make_config(steps=6, accumulation=accumulation, workers=workers)
    trainer = make_trainer(config, train_dataset=ReadsAhead(11))
    if workers:
        assert trainer._get_train_sampler() is trainer._sampler
        return
    plain = make_trainer(config)
    plain.train()
    losses = plain.state.log_history
    shutil.rmtree(trainer.output)
    trainer.train()
    assert [entry.get("loss") for entry in trainer.state.log_history] == [
        entry.get("loss") for entry in losses
    ]
    order, batches = toolbox.Shuffled(11), []
    for epoch in range(2):
        order.set_epoch(epoch)
        numbers, size = list(order), 4 // accumulation
        batches += [numbers[first : first + size] for first in range(0, 11, size)]
    assert expected == batches


# 11 samples, 4 a step: 3 steps an epoch. Step 3 ends an epoch; step 5 is in the middle of the second.
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("interrupted", [3, 5])
@pytest.mark.sampled(3)
def test_resumed_equals_uninterrupted_bit_for_bit(
    make_trainer: Make,
    make_config: Make,
    toolbox: SimpleNamespace,
    tmp_path: Path,
    interrupted: int,
    accumulation: int,
) -> None:
    validation = toolbox.Windows(6, first=100)

    def make(name: str, **kwargs: Any) -> Any:
        output = {"directory": str(tmp_path / name), "save_interval": interrupted, "keep_checkpoints": 9}
        settings = {
            "steps": 8,
            "evaluation_interval": 2,
            "patience": 50,
            "warmup_steps": 2,
            "keep_best": False,
        }
        config = make_config(output, accumulation=accumulation, **settings)
        return make_trainer(config, eval_dataset=validation, **kwargs)

    whole = make("whole")
    whole.train()
    generator = torch.get_rng_state()

    killed = make("parts", callbacks=[Interrupt(interrupted)])
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert killed.state.global_step == interrupted
    torch.rand(17)  # another process would not be at the same point of its random numbers
    resumed = make("parts")
    resumed.train(resume_from_checkpoint=True)

    assert resumed.state.global_step == whole.state.global_step == 8
    assert same(weights(resumed), weights(whole))
    assert torch.equal(torch.get_rng_state(), generator)
    for first, second in zip(whole._trainable, resumed._trainable, strict=True):
        one, two = whole.optimizer.state[first], resumed.optimizer.state[second]
        assert all(torch.equal(one[key], two[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    columns = ("step", "loss", "learning_rate", "gradient_norm", "gate/0", "eval_loss", "epoch")
    logs = [
        [tuple(line.get(column) for column in columns) for line in read_log(trainer.output / "log.jsonl")]
        for trainer in (whole, resumed)
    ]
    assert logs[0] == logs[1]
    best = [trainer.state.best_global_step for trainer in (whole, resumed)]
    assert best[0] == best[1]


def test_resuming_a_finished_run_changes_nothing(make_trainer: Make, make_config: Make) -> None:
    config = make_config(steps=5)  # ends in the middle of an epoch of 3 steps
    first = make_trainer(config)
    first.train()
    again = make_trainer(config)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5
    assert same(weights(first), weights(again))
    longer = make_trainer(make_config(steps=9, logging_interval=2))
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 9
    steps = [line["step"] for line in read_log(longer.output / "log.jsonl") if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6, 8]  # the new logging interval holds


def test_resume_passes_over_a_damaged_checkpoint(make_trainer: Make, make_config: Make) -> None:
    config = make_config({"save_interval": 2, "keep_checkpoints": 5})
    first = make_trainer(config)
    first.train()
    path = first.output / "checkpoint-6" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    again = make_trainer(config)
    again.train(resume_from_checkpoint=True)
    assert same(weights(first), weights(again))  # from step 4 on
    verify_checkpoint(first.output / "checkpoint-6")  # and the damaged one was replaced
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        make_trainer(config).train(resume_from_checkpoint=first.output / "checkpoint-6")


def test_resume_refuses_settings_of_another_run(make_trainer: Make, make_config: Make) -> None:
    make_trainer().train()
    with pytest.raises(CheckpointError, match=r"training\.learning_rate: expected 0\.05, as in checkpoint-6"):
        make_trainer(make_config(learning_rate=0.01)).train(resume_from_checkpoint=True)


def test_resume_refuses_other_parts_and_other_data(make_trainer: Make, make_config: Make) -> None:
    config = make_config(steps=2)
    make_trainer(config, identity={"texts": "abc"}).train()
    other = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, options={"depth": 3}))
    with pytest.raises(CheckpointError, match=r"encoder\.options: expected {}, as in checkpoint-2; received"):
        make_trainer(other, identity={"texts": "abc"}).train(resume_from_checkpoint=True)
    with pytest.raises(
        CheckpointError, match=r"texts: expected what checkpoint-2 was trained on \(SHA-256 abc"
    ):
        make_trainer(config, identity={"texts": "xyz"}).train(resume_from_checkpoint=True)
    for unknown in ({}, {"texts": "abc", "fields": "def"}):
        with pytest.raises(CheckpointError, match=r"expected what checkpoint-2 was trained on"):
            make_trainer(config, identity=unknown).train(resume_from_checkpoint=True)
    # Where the data lies and how often it is looked at are no part of the result.
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, source="elsewhere.nc"))
    longer = make_config(steps=3, evaluation_interval=7)
    trainer = make_trainer(dataclasses.replace(moved, training=longer.training), identity={"texts": "abc"})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_evaluation_leaves_the_random_numbers_of_training_alone(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace, tmp_path: Path
) -> None:
    """Dropout is on: one number more, and all weights differ."""
    runs = []
    for name, interval in (("a", 1), ("b", 1000)):
        trainer = make_trainer(
            make_config(
                {"directory": str(tmp_path / name), "save_interval": 1000},
                evaluation_interval=interval,
                keep_best=False,
            ),
            eval_dataset=toolbox.Windows(4),
            extra_metrics=lambda model: {"noise": torch.rand(()).item()},
        )
        torch.manual_seed(1)
        trainer.train()
        runs.append(weights(trainer))
    assert same(*runs)


@pytest.mark.parametrize("ends", ["patience", "max_seconds"])
def test_resuming_a_run_that_ended_early_changes_nothing(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace, ends: str
) -> None:
    def run(resume: bool, **settings: Any) -> Any:
        ticking = Ticking()
        limits = {"patience": {"patience": 2}, "max_seconds": {"max_seconds": 5.0}}[ends]
        trainer = make_trainer(
            make_config(evaluation_interval=2, best_metric="score", steps=30, **(limits | settings)),
            eval_dataset=toolbox.Windows(4),
            extra_metrics=lambda model: {"score": 1.0},
            clock=RunClock(ticking),
            callbacks=[Tick(ticking)],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    first = run(resume=False)
    again = run(resume=True)
    assert again.state.global_step == first.state.global_step < 10
    assert again.stopped_by == first.stopped_by == ends
    assert same(weights(first), weights(again))
    steps = [line["step"] for line in read_log(first.output / "log.jsonl") if "train_runtime" in line]
    assert steps == [first.state.global_step]  # one summary, of the whole run
    assert run(resume=True, **{ends: 3 if ends == "patience" else 7.0}).state.global_step > steps[0]


def test_a_missing_best_checkpoint_is_not_replaced_by_the_last_weights(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace
) -> None:
    scores = iter([0.9, 0.1, 0.1])

    def make(**settings: Any) -> Any:
        return make_trainer(
            make_config(evaluation_interval=2, best_metric="score", steps=6, **settings),
            eval_dataset=toolbox.Windows(4),
            extra_metrics=lambda model: {"score": next(scores)},
        )

    first = make()
    first.train()
    shutil.rmtree(first.output / "checkpoint-2")
    with pytest.raises(CheckpointError, match="checkpoint-2"):
        make().train(resume_from_checkpoint=first.output / "checkpoint-6")
    make(keep_best=False).train(resume_from_checkpoint=first.output / "checkpoint-6")


def test_the_mean_loss_is_that_of_all_steps(make_trainer: Make, make_config: Make) -> None:
    """Each of the losses that are logged at every step counts once, whichever session it was taken in."""
    make_trainer(make_config(steps=4)).train()
    outcome = make_trainer(make_config(steps=7)).train(resume_from_checkpoint=True)
    lines = read_log(make_trainer(make_config(steps=7)).output / "log.jsonl")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 7
    assert outcome.training_loss == pytest.approx(sum(losses) / 7, rel=1e-6)
    assert lines[-1]["train_loss"] == outcome.training_loss


def test_resume_without_checkpoints_begins(make_trainer: Make) -> None:
    trainer = make_trainer()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6


def test_an_earlier_run_is_not_mixed_in(make_trainer: Make, make_config: Make) -> None:
    make_trainer().train()
    with pytest.raises(TrainingError, match=r"1 checkpoints, the newest checkpoint-6"):
        make_trainer().train()
    fresh = make_trainer(make_config({"overwrite": True}, steps=2))
    fresh.train()
    assert [step for step, _ in list_checkpoints(fresh.output)] == [2]
    assert max(line["step"] for line in read_log(fresh.output / "log.jsonl")) == 2


class Poisoned(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples of which one has a field that is not a number, or one that overflows only in the gradient."""

    def __init__(self, windows: Any, culprit: int, value: float) -> None:
        self.windows, self.culprit, self.value = windows, culprit, value

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        sample = self.windows[number]
        if number == self.culprit:
            sample["fields"] = torch.full_like(sample["fields"], self.value)
        return sample


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_step(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace, accumulation: int
) -> None:
    order = list(toolbox.Shuffled(11))
    culprit = order[4 + 3]  # the last sample of the second step
    trainer = make_trainer(
        make_config({"save_interval": 1}, accumulation=accumulation, betas=[0.0, 0.0]),
        train_dataset=Poisoned(toolbox.Windows(11), culprit, float("nan")),
    )
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    assert caught.value.argument == "step 2"
    assert f"a loss of nan from sample {culprit} alone" in caught.value.received
    assert "step 1" in caught.value.remedy
    # The weights are those of the checkpoint after step 1, and the run can go on from there.
    assert [step for step, _ in list_checkpoints(trainer.output)] == [1]
    stopped = weights(trainer)
    trainer.model.load_trainable(str(trainer.output / "checkpoint-1"))
    assert same(stopped, weights(trainer))
    assert all(torch.isfinite(value).all() for value in stopped.values())
    assert not trainer.is_in_train


class Cliff(torch.autograd.Function):
    """Finite forward, infinite backward where the input is large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-5, 5)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * torch.where(x.abs() > 1000, torch.inf, 1.0)


def test_a_gradient_that_is_not_finite_names_its_sample(make_trainer: Make, toolbox: SimpleNamespace) -> None:
    class Model(toolbox.StandIn):  # type: ignore[misc, name-defined]
        def forward(self, climate_fields: Tensor, **batch: Any) -> Any:
            # The gradient reaches a weight only through the cliff.
            return super().forward(climate_fields=Cliff.apply(climate_fields * self.scale), **batch)

    torch.manual_seed(5)
    model = Model()
    model.scale = nn.Parameter(torch.ones(()))
    culprit = list(toolbox.Shuffled(11))[1]
    trainer = make_trainer(model=model, train_dataset=Poisoned(toolbox.Windows(11), culprit, 1e6))
    before = weights(trainer)
    with pytest.raises(
        NonFiniteError, match=f"finite losses, but a gradient norm of .*from sample {culprit} alone"
    ):
        trainer.train()
    assert same(before, weights(trainer))


def test_a_batch_without_labels_is_explained(make_trainer: Make, toolbox: SimpleNamespace) -> None:
    class Mute(toolbox.Windows):  # type: ignore[misc, name-defined]
        def __getitem__(self, number: int) -> dict[str, Any]:
            sample = super().__getitem__(number)
            sample["labels"][:] = -100
            return sample

    with pytest.raises(NonFiniteError, match="no labeled token"):
        make_trainer(train_dataset=Mute(11)).train()


def test_evaluation_that_is_not_finite_stops(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace
) -> None:
    validation = Poisoned(toolbox.Windows(5), 2, float("nan"))
    with pytest.raises(NonFiniteError, match="evaluation at step 3"):
        make_trainer(make_config(evaluation_interval=3), eval_dataset=validation).train()


def test_evaluation_loss_is_the_mean_over_tokens(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace
) -> None:
    config = make_config()
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, windows_per_batch=2)
    )
    trainer = make_trainer(config, eval_dataset=toolbox.Windows(5))
    losses, tokens = 0.0, 0
    trainer.model.eval()
    for number in range(5):  # one by one; the first token of a text is never predicted
        batch = toolbox.collate([toolbox.Windows(5)[number]])
        batch.pop("sample")
        count = 2 * [5, 5, 4][number % 3]
        losses += trainer.model(**batch).loss.item() * count
        tokens += count
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses / tokens, rel=1e-6)


def test_best_step_is_kept_and_loaded(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace
) -> None:
    scores = iter([0.1, 0.9, 0.3, 0.2, 0.5])
    trainer = make_trainer(
        make_config(
            {"keep_checkpoints": 1, "save_interval": 3}, evaluation_interval=1, best_metric="fact_f1", steps=5
        ),
        eval_dataset=toolbox.Windows(4),
        extra_metrics=lambda model: {"fact_f1": next(scores)},
    )
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert [step for step, _ in list_checkpoints(trainer.output)] == [2, 5]
    ended = weights(trainer)
    trainer.model.load_trainable(str(trainer.output / "checkpoint-2"))
    assert same(ended, weights(trainer))
    evaluations = [line for line in read_log(trainer.output / "log.jsonl") if "eval_fact_f1" in line]
    assert [line["eval_fact_f1"] for line in evaluations] == [0.1, 0.9, 0.3, 0.2, 0.5]


def test_early_stopping(make_trainer: Make, make_config: Make, toolbox: SimpleNamespace) -> None:
    scores = iter([0.5, 0.6, 0.6, 0.4, 0.9])
    trainer = make_trainer(
        make_config(evaluation_interval=2, best_metric="fact_f1", patience=2, steps=20),
        eval_dataset=toolbox.Windows(4),
        extra_metrics=lambda model: {"fact_f1": next(scores)},
    )
    trainer.train()
    assert trainer.state.global_step == 8
    assert trainer.stopped_by == "patience"
    assert [step for step, _ in list_checkpoints(trainer.output)] == [4, 8]


class Ticking:
    """A clock on which everything between two looks takes no time but a step takes one second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Tick(TrainerCallback):
    def __init__(self, clock: Ticking) -> None:
        self.clock = clock

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.now += 1.0


def test_time_limit_is_a_clean_stop_over_resumptions(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace
) -> None:
    def run(limit: float, resume: bool) -> Any:
        ticking = Ticking()
        trainer = make_trainer(
            make_config(steps=100, max_seconds=limit, evaluation_interval=50),
            eval_dataset=toolbox.Windows(4),
            clock=RunClock(ticking),
            callbacks=[Tick(ticking)],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    trainer = run(5.0, resume=False)
    assert trainer.state.global_step == 4  # a fifth step would end at 5 s
    assert trainer.stopped_by == "max_seconds"
    assert [step for step, _ in list_checkpoints(trainer.output)] == [4]
    lines = read_log(trainer.output / "log.jsonl")
    assert any("eval_loss" in line and line["step"] == 4 for line in lines)
    assert lines[-1]["stopped_by"] == "max_seconds"
    assert run(10.0, resume=True).state.global_step == 9


def test_schedule_by_seconds_is_annealed_when_time_is_up(make_trainer: Make, make_config: Make) -> None:
    ticking = Ticking()
    settings = {
        "max_seconds": 11.0,
        "schedule_by": "seconds",
        "schedule": "linear",
        "minimum_learning_rate": 0.0,
    }
    trainer = make_trainer(
        make_config(steps=1000, **settings), clock=RunClock(ticking), callbacks=[Tick(ticking)]
    )
    trainer.train()
    lines = [line for line in read_log(trainer.output / "log.jsonl") if "loss" in line]
    # The rate of step k (from 1) was set when k − 1 s were gone.
    expected = [0.05 * (1 - second / 11) for second in range(10)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected)


def test_log_line_holds_what_the_run_is_about(make_trainer: Make, make_config: Make) -> None:
    ticking = Ticking()
    trainer = make_trainer(
        make_config({"tensorboard": True}, steps=5, logging_interval=2),
        clock=RunClock(ticking),
        callbacks=[Tick(ticking)],
    )
    trainer.train()
    lines = read_log(trainer.output / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 4, 5]  # the first, every second, the summary
    line = lines[2]
    parts = [line[f"gradient_norm/{part}"] for part in ("encoder", "fusions.0", "fusions.3")]
    assert line["gradient_norm"] == pytest.approx(math.sqrt(sum(norm**2 for norm in parts)))
    assert line.keys() >= {"loss", "learning_rate", "gate/0", "gate/3", "peak_memory_gb", "seconds", "epoch"}
    # Steps 3 (3 windows, the end of an epoch of 11) and 4 (4 windows) in 2 s; 2 texts of 6 tokens a window.
    assert line["samples_per_second"] == pytest.approx(7 / 2)
    assert line["text_tokens_per_second"] == pytest.approx(7 * 12 / 2)
    assert line["climate_tokens_per_second"] == pytest.approx(7 / 2)
    assert any(entry.name.startswith("events.out") for entry in (trainer.output / "tensorboard").iterdir())


def test_nothing_is_pickled_and_every_save_has_its_card(make_trainer: Make, make_config: Make) -> None:
    written: list[str] = []

    def card() -> str:
        written.append(f"# Model after save {len(written) + 1}")
        return written[-1]

    class Processor:
        def save_pretrained(self, folder: str) -> None:
            Path(folder, "processor_config.json").write_text("{}")

    trainer = make_trainer(make_config({"save_interval": 3}), card=card, processing_class=Processor())
    trainer.train()
    trainer.save_model()
    model, checkpoint = trainer.output / "model", trainer.output / "checkpoint-6"
    assert {path.name for path in model.iterdir()} == {
        "README.md", "config.json", "manifest.json", "model.safetensors", "processor_config.json", "run.yaml",
    }  # fmt: skip
    assert {path.name for path in checkpoint.iterdir()} == {path.name for path in model.iterdir()} | {
        "optimizer.safetensors", "random.safetensors", "trainer_state.json", "training_state.json",
    }  # fmt: skip
    for path in trainer.output.rglob("*"):
        assert path.suffix in {"", ".json", ".jsonl", ".md", ".safetensors", ".yaml"}, path
    assert (checkpoint / "README.md").read_text() == "# Model after save 2"
    assert (model / "README.md").read_text() == "# Model after save 3"
    assert verify_checkpoint(model)["kind"] == "model"
    with pytest.raises(CheckpointError, match="saved model"):
        make_trainer(make_config()).train(resume_from_checkpoint=model)


def test_full_disk_while_saving_keeps_the_previous_checkpoint(
    make_trainer: Make, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(make_config({"save_interval": 2, "keep_checkpoints": 1}))
    real = trainer.model.save_pretrained

    def save_pretrained(folder: str) -> None:
        real(folder)
        if trainer.state.global_step == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.model, "save_pretrained", save_pretrained)
    with pytest.raises(CheckpointError, match=r"No space left.*untouched"):
        trainer.train()
    assert [step for step, _ in list_checkpoints(trainer.output)] == [2]
    verify_checkpoint(trainer.output / "checkpoint-2")


def test_a_model_without_the_surface_is_refused(make_trainer: Make, toolbox: SimpleNamespace) -> None:
    class NoCount(toolbox.StandIn):  # type: ignore[misc, name-defined]
        def forward(self, input_ids: Tensor) -> Any:
            raise NotImplementedError

    with pytest.raises(TrainingError, match="num_items_in_batch in forward"):
        make_trainer(model=NoCount())
    with pytest.raises(TrainingError, match="save_pretrained, load_trainable, trainable_state_dict"):
        make_trainer(model=nn.Linear(2, 2))


def test_a_transformers_without_the_hooks_is_refused(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from climafuse.training import surface

    monkeypatch.setattr(surface, "OVERRIDDEN", (*surface.OVERRIDDEN, "_clip_gradients_v6"))
    with pytest.raises(TrainingError, match=r"_clip_gradients_v6.*version"):
        make_trainer()


def test_every_overridden_hook_is_guarded() -> None:
    """A method that overrides a private one of the Trainer must be in the list that is checked."""
    from transformers import Trainer

    from climafuse.training.surface import OVERRIDDEN
    from climafuse.training.trainer import ClimateTextTrainer

    private = {
        name for name in vars(ClimateTextTrainer) if name.startswith("_") and not name.startswith("__")
    }
    assert {name for name in private if hasattr(Trainer, name)} <= set(OVERRIDDEN)
    assert set(OVERRIDDEN) <= vars(ClimateTextTrainer).keys()


def test_the_loss_before_the_first_step_is_measured_once(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace, tmp_path: Path
) -> None:
    """It is that of the untrained model, moves no random numbers, and a resumed run does not measure it again."""
    validation = toolbox.Windows(6, first=100)

    def make(name: str, first: bool, **kwargs: Any) -> Any:
        output = {"directory": str(tmp_path / name), "save_interval": 2}
        config = make_config(output, evaluate_first=first, evaluation_interval=4, keep_best=False)
        return make_trainer(config, eval_dataset=validation, **kwargs)

    untrained = make("untrained", False).evaluate()["eval_loss"]
    plain = make("plain", False)
    plain.train()
    with pytest.raises(KeyboardInterrupt):
        make("first", True, callbacks=[Interrupt(3)]).train()
    resumed = make("first", True)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(plain))
    lines = [line for line in read_log(resumed.output / "log.jsonl") if "eval_loss" in line]
    assert [line["step"] for line in lines] == [0, 4, 6]
    assert lines[0]["eval_loss"] == untrained
    assert lines[1]["eval_loss"] != untrained


def test_gradients_are_held_once_with_ddp(make_trainer: Make) -> None:
    """Else each would be in a bucket, too."""
    assert make_trainer().accelerator.ddp_handler.gradient_as_bucket_view
