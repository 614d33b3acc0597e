"""Out of memory: the microbatch is halved, and the run is the one it would have been.

Oracles: runs that had the smaller microbatch from the start, gradients by hand, batches made of fewer windows.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.trainer_callback import TrainerCallback

from climafuse.errors import MemoryExhaustedError
from climafuse.memory import MemoryState
from climafuse.model import PrefixStore
from climafuse.training.callbacks import Progress, RunClock, read_log
from climafuse.training.checkpoint import list_checkpoints, verify_checkpoint
from climafuse.training.dataset import ExampleCollator
from climafuse.training.memory_guard import MemoryGuard, WatermarkReached, cut, num_windows
from climafuse.training.pipeline import assemble, run
from tests.tiny import tiny_backbone
from tests.training.runs import make_config as make_run
from tests.training.runs import save_backbone, write_climate

Make = Callable[..., Any]
ERRORS = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
}  # fmt: skip


class Fails(TrainerCallback):
    """Makes a model fail at every microbatch of more windows than fit, from a step on.

    Args:
        fits: Most windows that fit.
        step: The first step at which they do not.
        microbatch: The first microbatch of that step; in later ones all are as large as they may be.
        backward: Fail in the middle of the backward pass, when some gradients are there.
        error: Makes the error.
    """

    def __init__(
        self,
        fits: int,
        *,
        step: int = 1,
        microbatch: int = 0,
        backward: bool = False,
        error: Callable[[], Exception] = ERRORS["cpu"],
    ) -> None:
        self.fits, self.step, self.microbatch = fits, step, microbatch
        self.backward, self.error = backward, error
        self.failed = 0
        self.gradients_left: list[bool] = []

    def plant(self, trainer: Any) -> Any:
        model = trainer.model
        forward, self.trainer = model.forward, trainer

        def limited(**inputs: Any) -> Any:
            step, number = trainer.state.global_step + 1, len(trainer._losses)
            late = step > self.step or (step == self.step and number >= self.microbatch)
            if self.failed > len(self.gradients_left):  # the first pass after a failure
                self.gradients_left.append(any(p.grad is not None for p in trainer._trainable))
            if not model.training or not late or len(inputs["climate_fields"]) <= self.fits:
                return forward(**inputs)
            self.failed += 1
            if not self.backward:
                raise self.error()
            outputs = forward(**inputs)
            outputs["loss"] = outputs["loss"] + 0 * _Stop.apply(model.encoder.weight, self.error).sum()
            return outputs

        model.forward = limited
        return trainer


class _Stop(torch.autograd.Function):
    """Fails in backward where the gradient of the encoder, the last of all, would be made."""

    @staticmethod
    def forward(context: Any, weight: Tensor, error: Callable[[], Exception]) -> Tensor:
        context.error = error
        return weight.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        raise context.error()


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def steps(trainer: Any) -> list[tuple[float, ...]]:
    lines = [line for line in read_log(trainer.output / "log.jsonl") if "loss" in line]
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines]


def without_dropout(trainer: Any) -> Any:
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return trainer


# ---- Parts of a batch


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return write_climate(folder / "fields.nc"), save_backbone(folder / "backbone")


@pytest.mark.parametrize("windows", [1, 2, 3, 4])
def test_parts_are_the_batches_of_fewer_windows(
    parts: tuple[Path, Path], tmp_path: Path, windows: int
) -> None:
    """Of the collator, bit for bit: texts of several lengths, windows that lack variables, labels left out."""
    facts = {"abstention_fraction": 0.5, "questions_per_window": 3}
    setup = assemble(make_run(*parts, tmp_path, facts=facts), say=lambda line: None)
    collate = ExampleCollator(setup.processor, setup.thinning)
    examples = list(setup.train[0:7])
    first, *others = examples[2].pairs  # asked of the window without its pressure, the rest of the whole one
    examples[2] = replace(examples[2], pairs=(*others, replace(first, withheld=("msl",))))
    whole = collate(examples)
    assert len(whole["climate_fields"]) == num_windows(whole) + 1 == 8  # rows of a window stay together
    expected = [collate(examples[first : first + windows]) for first in range(0, 7, windows)]
    found = cut(whole, windows)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), windows
    assert len({part["input_ids"].shape[1] for part in found}) > 1 or windows > 2  # padding went, too


def test_a_batch_that_fits_is_left_as_it_is(toolbox: SimpleNamespace) -> None:
    batch = toolbox.collate([toolbox.Windows(4)[number] for number in range(4)])
    assert cut(batch, 4)[0] is batch
    assert cut(batch, 9)[0] is batch


def test_texts_without_an_index_belong_to_the_windows_in_their_order() -> None:
    batch = {"input_ids": torch.arange(8).view(4, 2), "climate_fields": torch.arange(4.0), "flag": True}
    first, second = cut(batch, 2)
    assert first["input_ids"].tolist() == [[0, 1], [2, 3]]
    assert second["input_ids"].tolist() == [[4, 5], [6, 7]]
    assert (second["climate_fields"].tolist(), second["flag"]) == ([2.0, 3.0], True)


# ---- The same run


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", ["gpu", "cpu"])
@pytest.mark.sampled(3)
def test_a_run_that_is_cut_at_its_first_step_is_the_run_of_smaller_microbatches_bit_for_bit(
    make_trainer: Make, make_config: Make, tmp_path: Path, kind: str, backward: bool
) -> None:
    """With dropout: random numbers are set back, so the parts draw what that run draws."""

    def make(name: str, accumulation: int) -> Any:
        return make_trainer(make_config({"directory": str(tmp_path / name)}, accumulation=accumulation))

    smaller = make("smaller", 4)
    smaller.train()
    fails = Fails(1, backward=backward, error=ERRORS[kind])
    halved = fails.plant(make("cut", 1))
    halved.train()
    assert fails.failed == 2  # with 4 windows and with 2
    assert fails.gradients_left == [False, False]
    assert halved.memory["windows"] == 1
    assert distance(weights(halved), weights(smaller)) == 0.0
    assert steps(halved) == steps(smaller)


@pytest.mark.parametrize(
    ("step", "microbatch", "backward"), [(1, 1, True), (4, 0, False), (4, 1, True), (5, 1, False)]
)
@pytest.mark.sampled(2)
def test_whenever_it_is_cut_the_weights_are_those_of_the_whole_run(
    make_trainer: Make, make_config: Make, tmp_path: Path, step: int, microbatch: int, backward: bool
) -> None:
    """Within 1e-5 of weights of size 1, without dropout: the order of sums is another."""

    def make(name: str, accumulation: int) -> Any:
        config = make_config({"directory": str(tmp_path / name)}, accumulation=accumulation)
        return without_dropout(make_trainer(config))

    whole, smaller = make("whole", 2), make("smaller", 4)
    whole.train()
    smaller.train()
    fails = Fails(1, step=step, microbatch=microbatch, backward=backward)
    halved = fails.plant(make("cut", 2))
    halved.train()
    assert (fails.failed, fails.gradients_left) == (1, [False])
    assert halved.memory["splits"] == [{"step": step, "before": 2, "windows": 1, "why": str(ERRORS["cpu"]())}]
    assert distance(weights(halved), weights(whole)) < 1e-5
    assert distance(weights(halved), weights(smaller)) < 1e-5
    for one, other in zip(steps(halved), steps(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert halved._tr_loss.item() == pytest.approx(0.0, abs=1e-6)  # nothing of the failed attempt is counted


def test_gradients_are_those_of_the_step_and_nothing_else(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace
) -> None:
    """By hand: the loss of all windows of the first step in one pass. AdamW would hide a factor."""
    found: dict[str, Tensor] = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            named = halved.model.named_parameters()
            found.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    config = make_config(accumulation=2, steps=1, max_gradient_norm=None)
    halved = without_dropout(make_trainer(config, callbacks=[Look()]))
    torch.manual_seed(5)
    model = toolbox.StandIn()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = toolbox.collate([toolbox.Windows(11)[number] for number in list(toolbox.Shuffled(11))[:4]])
    batch.pop("sample")
    model(**batch).loss.backward()
    Fails(1, microbatch=1, backward=True).plant(halved).train()
    assert len(found) == sum(p.requires_grad for p in model.parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_uneven_microbatches_are_halved_as_far_as_they_go(make_trainer: Make, make_config: Make) -> None:
    """Five windows: three and two; then two, two and one."""
    guard = MemoryGuard(5, 16, device=torch.device("cpu"), read=lambda: None)
    sizes: list[int] = []
    batch = {"climate_fields": torch.zeros(5, 2), "input_ids": torch.zeros(5, 3)}

    def compute(part: Any, *, last: bool) -> Tensor:
        if len(part["input_ids"]) > 2:
            raise MemoryError
        sizes.append(len(part["input_ids"]))
        assert last == (len(sizes) == 3)
        return torch.tensor(1.0)

    losses: list[Tensor] = []
    assert guard.accumulate([batch], losses, compute, lambda: None, step=1)
    assert (sizes, guard.windows, [loss.item() for loss in losses]) == ([2, 2, 1], 2, [3.0])


def test_other_errors_go_on(make_trainer: Make) -> None:
    trainer = Fails(0, error=lambda: RuntimeError("shapes cannot be multiplied")).plant(make_trainer())
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.train()
    assert trainer.memory["splits"] == []


def test_several_processes_do_no_step_again() -> None:
    guard = MemoryGuard(4, 4, device=torch.device("cpu"), read=lambda: None)

    def compute(part: Any, *, last: bool) -> Tensor:
        raise MemoryError("full")

    with pytest.raises(MemoryExhaustedError, match=r"step 3: .*every process.*4 windows.*accumulation"):
        guard.accumulate(
            [{"climate_fields": torch.zeros(4, 2)}], [], compute, lambda: None, step=3, alone=False
        )


def test_where_all_take_part_in_each_pass_no_evaluation_is_done_again() -> None:
    """Of spread weights, the others would wait in another block for a part that only this process computes."""
    guard = MemoryGuard(4, 4, device=torch.device("cpu"), read=lambda: None)
    calls = []

    def compute(part: Any) -> None:
        calls.append(part)
        raise MemoryError("full")

    with pytest.raises(MemoryExhaustedError, match=r"4 windows.*smaller evaluation\.windows_per_batch"):
        guard.evaluate({"climate_fields": torch.zeros(4, 2)}, compute, step=3, alone=False)
    assert len(calls) == 1


# ---- Where it goes on


class Interrupt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_resumed_after_a_cut_is_the_uninterrupted_run_bit_for_bit(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace, tmp_path: Path
) -> None:
    def make(name: str, **kwargs: Any) -> Any:
        output = {"directory": str(tmp_path / name), "save_interval": 4, "keep_checkpoints": 9}
        config = make_config(output, accumulation=2, steps=8, evaluation_interval=4)
        return make_trainer(config, eval_dataset=toolbox.Windows(6, first=100), **kwargs)

    whole = Fails(1, step=3).plant(make("whole"))
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        Fails(1, step=3).plant(make("parts", callbacks=[Interrupt(6)])).train()
    resumed = make("parts")  # the machine has more memory now; the run stays what it was
    resumed.train(resume_from_checkpoint=True)
    assert resumed.memory == whole.memory
    assert resumed.memory["windows"] == 1
    assert distance(weights(resumed), weights(whole)) == 0.0
    logs = [
        [
            tuple(
                line.get(name) for name in ("step", "loss", "eval_loss", "gradient_norm", "windows", "before")
            )
            for line in read_log(trainer.output / "log.jsonl")
        ]
        for trainer in (whole, resumed)
    ]
    assert logs[0] == logs[1]
    assert (3, None, None, None, 1, 2) in logs[0]  # a line of its own, of the step that was cut
    # A run that starts anew starts whole.
    resumed.config.output.__dict__["overwrite"] = True
    resumed.train()
    assert resumed.memory == {"windows": 2, "evaluation_windows": 16, "splits": []}


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 1)])
def test_a_run_goes_on_in_other_microbatches(
    make_trainer: Make, make_config: Make, tmp_path: Path, before: int, after: int
) -> None:
    """As the error in several processes proposes; without dropout, the order of sums is all that differs."""

    def make(name: str, accumulation: int, **kwargs: Any) -> Any:
        output = {"directory": str(tmp_path / name), "save_interval": 4}
        config = make_config(output, accumulation=accumulation, steps=8)
        return without_dropout(make_trainer(config, **kwargs))

    whole = make("whole", before)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make("parts", before, callbacks=[Interrupt(6)]).train()
    resumed = make("parts", after)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert 0 < distance(weights(resumed), weights(whole)) < 1e-5
    for one, other in zip(steps(resumed), steps(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_one_window_that_does_not_fit_ends_the_run_with_a_good_checkpoint(
    make_trainer: Make, make_config: Make, tmp_path: Path
) -> None:
    config = make_config({"save_interval": 2})
    trainer = Fails(0, step=4).plant(make_trainer(config))
    trainer._guard.read = lambda: MemoryState(3_000_000_000, 3_000_000_000, 250_000_000, 4_000_000_000)
    with pytest.raises(MemoryExhaustedError) as caught:
        trainer.train()
    error = caught.value
    assert error.argument == "step 4"
    assert "one window and its texts" in error.expected
    assert "with one window, 2 texts of up to 6 tokens" in str(error.received)
    assert "3.00 GB, and 0.25 GB of 4.00 GB are left" in str(error.received)
    for remedy in ("training.checkpoint_activations: true", "backbone.quantization: int8", "shorter texts"):
        assert remedy in error.remedy
    ((step, path),) = list_checkpoints(trainer.output)
    assert step == 2
    assert f"Go on from {path} with --resume." in error.remedy
    verify_checkpoint(path)
    assert not any(p.grad is not None for p in trainer._trainable)
    resumed = make_trainer(make_config({"save_interval": 2}, checkpoint_activations=False, workers=0))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6


def test_out_of_memory_elsewhere_is_told_likewise(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()

    def full(*args: Any, **kwargs: Any) -> None:
        raise ERRORS["gpu"]()

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(MemoryExhaustedError, match=r"outside of the forward.*No checkpoint was saved"):
        trainer.train()


# ---- The watermark


class Machine:
    """A machine on which a forward pass takes a given number of bytes a token, and gives them back.

    Args:
        total: Its memory.
        resident: What the process holds between microbatches.
    """

    def __init__(self, total: int, resident: int) -> None:
        self.total, self.resident, self.peak = total, resident, resident
        self.taken = 0

    def __call__(self) -> MemoryState:
        held = self.resident + self.taken
        return MemoryState(held, max(self.peak, held), self.total - held, self.total)

    def take(self, size: int) -> None:
        self.taken = size
        self.peak = max(self.peak, self.resident + size)
        assert self.peak <= self.total, "the kernel would have killed the process"


GB = 1_000_000_000  # 84 MB of a machine of one are the reserve


def test_what_would_pass_the_watermark_is_cut_before_it_is_tried(
    make_trainer: Make, make_config: Make
) -> None:
    """The process grows by 130 MB a step. Four windows of twelve tokens take 240 MB and give them back."""
    machine = Machine(GB, 300_000_000)
    trainer = without_dropout(make_trainer(make_config(steps=5)))
    trainer._guard.read, trainer._guard.interval = machine, 0.0
    forward, sizes = trainer.model.forward, []

    def forward_taking(**inputs: Any) -> Any:
        machine.take(5_000_000 * inputs["input_ids"].numel())
        sizes.append(len(inputs["climate_fields"]))
        machine.taken = 0
        return forward(**inputs)

    class Grow(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            machine.resident += 130_000_000

    trainer.add_callback(Grow())
    trainer.model.forward = forward_taking
    trainer.train()
    # 300, 430, 560 MB and 240 more leave 84; 690 do not, but leave room for 120. 820 leave 96 for what takes 60.
    # The third step, of the three windows that are left of an epoch, takes 180.
    assert sizes == [4, 4, 3, 2, 2, 1, 1, 1, 1]
    assert [(split["step"], split["windows"]) for split in trainer.memory["splits"]] == [(4, 2), (5, 1)]
    assert trainer.memory["splits"][0]["why"].startswith("watermark: about 0.24 GB to be taken, 0.31 GB left")


def test_between_blocks_memory_is_looked_at_even_in_the_first_microbatch(toolbox: SimpleNamespace) -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(10))

    class Block(nn.Module):
        def forward(self, windows: int) -> None:
            machine.take(machine.taken + 40_000_000 * windows)  # what the backward pass will need is kept

    machine, model, tried = Machine(GB, 200_000_000), Blocks(), []
    guard = MemoryGuard(4, 4, device=torch.device("cpu"), read=machine)
    guard.interval = 0.0

    def compute(part: Any, *, last: bool) -> Tensor:
        tried.append(len(part["climate_fields"]))
        machine.taken = 0
        for block in model.blocks:
            block(tried[-1])
        machine.taken = 0
        return torch.tensor(0.0)

    batch = {"climate_fields": torch.zeros(4, 2)}
    with guard.watching(model):
        guard.accumulate([batch], [], compute, lambda: setattr(machine, "taken", 0), step=1)
    # 10 × 40 MB fit for a window, not for two: the look before the tenth block would find 80 MB.
    assert tried == [4, 2, 1, 1, 1, 1]
    assert all("watermark" in split["why"] for split in guard.splits)
    assert not any(block._forward_pre_hooks for block in model.blocks)
    model.blocks[0](1)  # outside of a microbatch nobody looks


def test_one_window_is_tried_whatever_is_expected_of_it() -> None:
    """What is expected is a guess; only what is seen ends a run."""
    machine = Machine(GB, 880_000_000)
    guard = MemoryGuard(1, 1, device=torch.device("cpu"), read=machine)
    guard.interval, guard._growth = 0.0, {"training": 1e9}
    batch = {"climate_fields": torch.zeros(1, 2)}
    done = guard.accumulate([batch], [], lambda part, last: torch.tensor(0.0), lambda: None, step=1)
    assert not done
    two = {"climate_fields": torch.zeros(2, 2)}
    guard.windows = 2
    with pytest.raises(WatermarkReached):
        guard._watched("training", lambda part: None, two)


def test_weights_that_are_read_for_the_first_time_are_not_expected_again() -> None:
    machine = Machine(20 * GB, GB)
    guard = MemoryGuard(4, 4, device=torch.device("cpu"), read=machine)
    guard.interval = 0.0
    batch = {"climate_fields": torch.zeros(4, 2)}

    def compute(part: Any) -> None:
        machine.resident = 12 * GB  # mapped from a file
        machine.take(GB)
        machine.taken = 0

    guard._watched("training", compute, batch)
    assert guard._growth["training"] * 4 == pytest.approx(GB)


def test_memory_is_not_looked_at_all_the_time_nor_on_a_gpu() -> None:
    looks: list[int] = []

    def read() -> MemoryState:
        looks.append(1)
        return MemoryState(1, 1, 10 * GB, 10 * GB)

    batch = {"climate_fields": torch.zeros(4, 2)}
    for device, expected in (("cuda", 0), ("cpu", 2)):
        guard = MemoryGuard(4, 4, device=torch.device(device), read=read)
        for _ in range(5):
            guard._watched("training", lambda part: None, batch)
        assert len(looks) == expected


# ---- Without gradients


def test_an_evaluation_that_does_not_fit_is_halved(
    make_trainer: Make, make_config: Make, toolbox: SimpleNamespace
) -> None:
    validation = toolbox.Windows(7, first=100)
    whole = make_trainer(eval_dataset=validation)
    expected = whole.evaluate()["eval_loss"]
    trainer = make_trainer(eval_dataset=validation)
    forward, sizes = trainer.model.forward, []

    def limited(**inputs: Any) -> Any:
        if len(inputs["climate_fields"]) > 2:
            raise MemoryError
        sizes.append(len(inputs["climate_fields"]))
        return forward(**inputs)

    trainer.model.forward = limited
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert sizes == [2, 2, 2, 1]
    assert trainer.memory["evaluation_windows"] == 2
    assert [split["evaluation_windows"] for split in trainer.memory["splits"]] == [4, 2]
    lines = [line for line in trainer.state.log_history if "why" in line]
    assert [line["before"] for line in lines] == [7, 4]
    trainer.model.forward = lambda **inputs: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(MemoryExhaustedError, match="with one window, 2 texts"):
        trainer.evaluate()


def test_states_of_texts_are_computed_for_fewer_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = tiny_backbone().model
    texts = [(1, 2, 3, number) for number in range(4, 30)]
    whole = PrefixStore(backbone, 2, batch=16)
    whole.add(texts)
    store, sizes = PrefixStore(backbone, 2, batch=16), []
    compute = store._compute

    def limited(group: Sequence[Any]) -> list[torch.Tensor]:
        sizes.append(len(group))
        if len(group) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return compute(group)

    monkeypatch.setattr(store, "_compute", limited)
    told: list[tuple[int, int]] = []
    store.add(texts, progress=lambda done, of: told.append((done, of)))
    assert len(store) == 26
    assert told[-1] == (26, 26)
    assert sum(size > 5 for size in sizes) <= 3  # once is enough to know
    ids, mask = torch.tensor(texts), torch.ones(26, 4, dtype=torch.long)
    torch.testing.assert_close(store.lookup(ids, mask), whole.lookup(ids, mask), rtol=1e-5, atol=1e-5)


# ---- What is told


def test_progress_tells_at_once() -> None:
    stream = io.StringIO()
    progress = Progress(RunClock(), stream=stream)
    progress.on_log(None, None, None, {"before": 4, "windows": 2, "why": "CUDA out of memory."})  # type: ignore[arg-type]
    progress.on_log(None, None, None, {"before": 9, "evaluation_windows": 5, "why": "full"})  # type: ignore[arg-type]
    assert stream.getvalue().splitlines() == [
        "memory: from here on a microbatch holds 2 windows, not 4 (CUDA out of memory.)",
        "memory: from here on an evaluation batch holds 5 windows, not 9 (full)",
    ]


def test_a_real_run_is_cut_with_all_that_is_on_and_says_so(
    parts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored states, a sampled vocabulary, thinned labels. Cut at the first step, it is that of half microbatches."""
    from climafuse.model import ClimateTextForCausalLM

    forward = ClimateTextForCausalLM.forward

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training and len(kwargs["climate_fields"].unique(dim=0)) > 1:
            raise ERRORS["gpu"]()
        return forward(self, *args, **kwargs)

    facts = {"abstention_fraction": 0.0}  # so that a window is a row
    smaller = make_run(*parts, tmp_path / "smaller0", training={"accumulation": 4}, facts=facts)
    run(smaller, say=lambda line: None)
    monkeypatch.setattr(ClimateTextForCausalLM, "forward", limited)
    result = run(make_run(*parts, tmp_path / "cut", facts=facts), say=lambda line: None)
    record = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert record["microbatch"] == result["microbatch"]
    assert record["microbatch"]["windows"] == 1
    assert record["microbatch"]["splits"][0]["step"] == 1
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("cut", "smaller0"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.skipif(sys.platform != "linux", reason="limits and forks of Linux")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that it forks beside threads
def test_when_the_system_gives_no_more_the_run_goes_on(
    make_trainer: Make, make_config: Make, tmp_path: Path
) -> None:
    """For real, in a process that may take 400 MB more: four windows want 480 and a gradient, two 240."""
    child = os.fork()
    if not child:
        code = 1
        try:
            trainer = make_trainer(make_config(steps=2))
            forward = trainer.model.forward

            def large(**inputs: Any) -> Any:
                outputs = forward(**inputs)
                kept = torch.ones(len(inputs["climate_fields"]), 60_000_000 // 4)
                outputs["loss"] = outputs["loss"] + 0 * (kept * trainer.model.fusions["0"].gate).sum()
                return outputs

            trainer.model.forward = large
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (taken + 400_000_000,) * 2)
            trainer.train()
            (tmp_path / "told.json").write_text(json.dumps([trainer.memory, trainer.state.global_step]))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    memory, step = json.loads((tmp_path / "told.json").read_text())
    assert (memory["windows"], step) == (2, 2)
    assert "allocate memory" in memory["splits"][0]["why"]
