"""Several processes train as one does, and none outlives another.

Each case runs real processes that meet by gloo (`ranks.py`). One process is the oracle: `test_trainer.py` holds it
against a loop written by hand.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file

from climafuse.errors import ConfigurationError
from climafuse.training.arguments import training_arguments
from climafuse.training.callbacks import read_log
from climafuse.training.config import RunConfig, read_dataclass
from climafuse.training.group import Group, _variables
from climafuse.training.shares import Share
from tests.fusion.small import SMALL
from tests.training.conftest import Shuffled, StandIn
from tests.training.ranks import Ranks, output
from tests.training.runs import save_backbone, write_climate
from tests.training.runs import settings as run_settings

# Sums over windows are taken in another order: float32 rounding, grown by seven steps of AdamW.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as server:
        yield server


def weights(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(folder / f"weights-{rank}.safetensors")


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def steps(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"steps-{rank}.json").read_text())


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what the clock tells."""
    told = ("loss", "learning_rate", "step", "epoch", "train_loss", "eval_loss", "eval_train_loss")
    kept = [
        {key: value for key, value in line.items() if key in told or key.startswith(("gradient", "gate"))}
        for line in read_log(folder / "run" / "log.jsonl")
    ]
    assert kept
    return kept


# ---- Which samples a process reads


@pytest.mark.parametrize("length", [1, 5, 11, 12])
@pytest.mark.parametrize(("batch", "size"), [(2, 2), (4, 2), (6, 3), (4, 4), (3, 1)])
def test_shares_are_the_microbatches_without_overlap_or_gap(length: int, batch: int, size: int) -> None:
    shares = [Share(Shuffled(length), batch, rank=rank, size=size) for rank in range(size)]
    for epoch in (0, 1):
        order = Shuffled(length)
        order.set_epoch(epoch)
        for share in shares:
            share.set_epoch(epoch)
        own = [list(share) for share in shares]
        assert [len(samples) for samples in own] == [len(share) for share in shares]
        # Cut as a loader cuts them.
        cut = [[s[i : i + batch // size] for i in range(0, len(s), batch // size)] for s in own]
        microbatches = [list(order)[i : i + batch] for i in range(0, length, batch)]
        assert {len(batches) for batches in cut} == {len(microbatches)}
        for number, whole in enumerate(microbatches):
            last = number == len(microbatches) - 1
            parts = [cut[rank][number] for rank in range(size)]
            counted = [
                [] if last and share.borrows else part for share, part in zip(shares, parts, strict=True)
            ]
            assert list(itertools.chain(*counted)) == whole
            assert all(parts)
            sizes = [len(part) for part in counted]
            assert max(sizes) - min(sizes) <= 1


def test_microbatches_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    group = Group()
    group.size = 3
    content = {"training": {"windows_per_step": 8, "accumulation": 2}, "output": {"directory": str(tmp_path)}}
    with pytest.raises(ConfigurationError, match=r"multiple of accumulation × processes = 2 × 3.*received 8"):
        training_arguments(read_dataclass(RunConfig, content), evaluate=False, group=group)


MET = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        # A shell in an allocation of Slurm is one process.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, None),
        ({**MET, "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"},
         {**MET, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}),
        ({**MET, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "SLURM_PROCID": "0"},
         {**MET, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}),
    ],
)  # fmt: skip
def test_processes_are_found_by_their_variables(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], found: dict[str, str] | None
) -> None:
    monkeypatch.setattr("os.environ", given)
    assert _variables() == found


def test_variables_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "1"})
    with pytest.raises(ConfigurationError, match=r"^LOCAL_RANK, MASTER_ADDR: expected variables that name"):
        _variables()


def test_the_examples_are_what_accelerate_and_bash_read() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    folder = Path(__file__).parents[2] / "examples" / "distributed"
    read = {path.stem: load_config_from_file(str(path)) for path in folder.glob("*.yaml")}
    assert {name: str(config.distributed_type.value) for name, config in read.items()} == {
        "ddp": "MULTI_GPU",
        "deepspeed_zero2": "DEEPSPEED",
        "fsdp2": "FSDP",
    }
    known = {f"fsdp_{field.name}" for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    known |= {"fsdp_version", "fsdp_offload_params"}  # under names of their own there
    assert read["fsdp2"].fsdp_config.keys() <= known
    # With a file for DeepSpeed, accelerate refuses to be told; there, "no" is the default.
    assert {name: config.mixed_precision for name, config in read.items()} == {
        "ddp": "no",
        "deepspeed_zero2": None,
        "fsdp2": "no",
    }
    assert (folder.parents[1] / read["deepspeed_zero2"].deepspeed_config["deepspeed_config_file"]).is_file()
    subprocess.run(["bash", "-n", str(folder / "slurm.sh")], check=True, timeout=10)


# ---- Two are one

SETTINGS = {"accumulation": 2}


def test_two_processes_are_one(ranks: Ranks, tmp_path: Path) -> None:
    """Weights, losses, norms and evaluations; 11 samples, 4 a step: the last of an epoch is one process's alone."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert ranks.run("train", one, size=1, settings=SETTINGS) == [0]
    assert ranks.run("train", two, settings=SETTINGS) == [0, 0], output(two, 0) + output(two, 1)
    assert farthest(weights(two, 0), weights(two, 1)) == 0
    assert farthest(weights(one), weights(two)) < TOLERANCE
    torch.manual_seed(5)
    assert farthest(StandIn().state_dict(), weights(one)) > 0.1  # they have learned
    for single, both in zip(lines(one), lines(two), strict=True):
        assert single.keys() == both.keys()
        assert single == pytest.approx(both, rel=1e-4)
    assert steps(two, 0)["step"] == steps(two, 1)["step"] == steps(one, 0)["step"] == 7
    # What each has read: the microbatches of one process, each sample once.
    borrowed = 0
    orders = [steps(folder, rank)["order"] for folder, rank in ((one, 0), (two, 0), (two, 1))]
    for whole, *parts in zip(*orders, strict=True):
        assert {part[0] for part in parts} == {whole[0]}  # the step
        assert [sample for part in parts if not part[2] for sample in part[1]] == whole[1]
        borrowed += sum(part[2] for part in parts)
    assert borrowed == 2  # the end of each of two epochs
    assert not output(two, 1)  # the first speaks


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_so_are_several_without_accumulation(ranks: Ranks, tmp_path: Path, size: int) -> None:
    settings = {"windows_per_step": 6, "max_gradient_norm": 0.05}
    one, several = tmp_path / "one", tmp_path / "several"
    assert ranks.run("train", one, size=1, settings=settings) == [0]
    assert ranks.run("train", several, size=size, settings=settings) == [0] * size
    assert farthest(weights(one), weights(several, size - 1)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fusion", "sites", "encoder"),
    [
        ("cross_attention", [2, "output"], {}),
        ("gated_addition", ["output"], {"name": "conv", "options": {}}),
        ("film", [1], {}),
        ("prefix", "input", {"name": "blind", "options": {"place": True}}),
    ],
)
def test_so_is_the_command_with_all_that_a_run_has(
    ranks: Ranks, tmp_path: Path, fusion: str, sites: Any, encoder: dict[str, Any]
) -> None:
    """Stored states, a sampled vocabulary and thinned labels; each parameter has its gradient in every step."""
    climate, backbone = write_climate(tmp_path / "c.nc"), save_backbone(tmp_path / "backbone")
    found = []
    for size in (1, 2):
        content = run_settings(climate, backbone, tmp_path / str(size), training={"precision": "float32"})
        content["fusion"] = {"name": fusion, "sites": sites, "options": SMALL[fusion]}
        content["encoder"].update(encoder)
        (tmp_path / f"{size}.yaml").write_text(json.dumps(content))
        folder = tmp_path / f"job-{size}"
        codes = ranks.run("command", folder, size=size, arguments=["train", str(tmp_path / f"{size}.yaml")])
        assert codes == [0] * size, output(folder, size - 1)
        assert size == 1 or not output(folder, 1)
        found.append(load_file(tmp_path / str(size) / "checkpoint-8/model.safetensors"))
        assert (tmp_path / str(size) / "run.json").is_file()
    assert farthest(*found) < 1e-4


# ---- Resuming


@pytest.mark.slow
def test_a_run_of_two_resumes_bit_for_bit(ranks: Ranks, tmp_path: Path) -> None:
    """With dropout, which each process draws for itself, killed after its checkpoint, in the middle of an epoch."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    call: dict[str, Any] = {"settings": SETTINGS, "dropout": True, "output": {"save_interval": 4}}
    assert ranks.run("train", whole, **call) == [0, 0]
    codes = ranks.run("train", cut, **call, event=["SIGKILL", 1, 6])
    assert codes[1] == -9
    assert codes[0] == 1
    assert ranks.run("train", cut, **call, resume=True) == [0, 0]
    for rank in (0, 1):
        assert farthest(weights(whole, rank), weights(cut, rank)) == 0
    assert lines(whole) == lines(cut)
    random = load_file(whole / "run/checkpoint-7/random.safetensors")
    assert not torch.equal(random["torch"], random["1:torch"])  # masks are not those of the other


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 4)])
def test_another_number_of_processes_goes_on(ranks: Ranks, tmp_path: Path, first: int, then: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"windows_per_step": 4}
    output_ = {"save_interval": 4}
    assert ranks.run("train", whole, size=1, settings=settings, output=output_) == [0]
    codes = ranks.run(
        "train", cut, size=first, settings=settings, output=output_, event=["SIGTERM", first - 1, 5]
    )
    assert codes == [75] * first
    assert ranks.run("train", cut, size=then, settings=settings, output=output_, resume=True) == [0] * then
    assert farthest(weights(whole), weights(cut)) < TOLERANCE
    for single, other in zip(lines(whole), lines(cut), strict=True):
        assert single == pytest.approx(other, rel=1e-4)


# ---- Ending together


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_ends_all_with_the_same_step_saved(ranks: Ranks, tmp_path: Path, rank: int) -> None:
    assert ranks.run("train", tmp_path, settings={}, event=["SIGTERM", rank, 4]) == [75, 75]
    assert steps(tmp_path, 0)["step"] == steps(tmp_path, 1)["step"] in (4, 5)
    said = [output(tmp_path, rank) for rank in (0, 1)]
    assert all("SIGTERM: expected 7 steps; received a request to end at step" in text for text in said)
    assert sum(text.startswith("error:") for text in said) == 1


@pytest.mark.slow
def test_the_first_process_keeps_the_time(ranks: Ranks, tmp_path: Path) -> None:
    """The clock of the other runs half as fast again."""
    settings = {"steps": 10**6, "max_seconds": 2.0, "evaluation_interval": 10**6, "schedule_by": "seconds"}
    assert ranks.run("train", tmp_path, settings=settings, clock_offset=0.5) == [0, 0]
    told = [steps(tmp_path, rank) for rank in (0, 1)]
    assert told[0]["step"] == told[1]["step"] > 1
    assert {one["stopped_by"] for one in told} == {"max_seconds"}
    assert farthest(weights(tmp_path, 0), weights(tmp_path, 1)) == 0  # the rate goes by the same clock


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_sample_and_process(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks.run("train", tmp_path, settings={}, event=["nan", 0, 7]) == [1, 1]
    order = [steps(tmp_path, rank)["order"] for rank in (0, 1)]
    ((step, reader),) = [
        (step, rank) for rank in (0, 1) for step, samples, borrowed in order[rank] if 7 in samples and not borrowed
    ]  # fmt: skip
    expected = f"step {step}, process {reader}: expected a finite loss"
    assert all(expected in output(tmp_path, rank) for rank in (0, 1))
    assert "from sample 7 alone" in output(tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("event", ["SIGKILL", "bug", "error", "hang", "interrupt"])
def test_one_that_fails_ends_the_others_within_thirty_seconds(
    ranks: Ranks, tmp_path: Path, event: str, rank: int
) -> None:
    settings = {"timeout_seconds": 5.0}  # of a process that hangs, how long the other waits for it
    codes = ranks.run("train", tmp_path, settings=settings, event=[event, rank, 3])
    other = 1 - rank
    assert codes[rank] == {"SIGKILL": -9, "bug": 99, "error": 1, "hang": 1, "interrupt": 130}[event]
    assert codes[other] == 1
    assert ranks.seconds < 30
    expected = {
        "SIGKILL": f"process {rank} gave no sign of life",
        "bug": f"process {rank} failed (ZeroDivisionError: of a test)",
        "error": "a file: expected fields; received none",
        "hang": f"process {rank} lives, but no longer takes part",
        "interrupt": f"process {rank} failed (KeyboardInterrupt)",
    }[event]
    assert expected in output(tmp_path, other)


# A failed process and its neighbor, as an interpreter runs and ends them.
SCRIPT = """
import sys
from climafuse.training.group import join
with join(60) as group:
    if group.rank == 1:
        raise {}
    group.exchange(None)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        ("ZeroDivisionError('of a test')", 1, "ZeroDivisionError: of a test"),
        ("KeyboardInterrupt", -2, "KeyboardInterrupt"),
        ("SystemExit(75)", 75, "SystemExit: 75"),
    ],
)
def test_a_process_ends_with_its_own_exit_code(tmp_path: Path, raised: str, code: int, told: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    met = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", SCRIPT.format(raised)]
    processes = []
    for rank in ("0", "1"):
        own = os.environ | met | {"RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, code], said
    assert f"process 1 failed ({told})" in said[0]


@pytest.mark.slow
def test_of_three_the_one_that_is_gone_is_named(ranks: Ranks, tmp_path: Path) -> None:
    settings = {"windows_per_step": 6}
    assert ranks.run("train", tmp_path, size=3, settings=settings, event=["SIGKILL", 1, 3]) == [1, -9, 1]
    assert all("process 1 gave no sign of life" in output(tmp_path, rank) for rank in (0, 2))


# ---- Weights spread over processes


CASES: tuple[dict[str, Any], ...] = (
    {},
    {"sites": "output", "store": True, "sampled": True},
    {"sites": "output"},
    {"sites": [2], "store": True},
    {"fusion": "prefix", "sites": "input"},
    {
        "dtype": "bfloat16",
        "lora": {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": None, "layers": None},
    },
    {"architecture": "gpt2"},
    {"architecture": "opt", "sampled": True},
)


@pytest.mark.slow
def test_a_sharded_model_is_the_whole_one(ranks: Ranks, tmp_path: Path) -> None:
    """`fully_shard` on a mesh of two: two steps, each process with a batch of its own, beside the mean of both."""
    codes = ranks.run("fully_shard", tmp_path, cases=list(CASES), limit=120)
    assert codes == [0, 0], output(tmp_path, 0)
    told = json.loads((tmp_path / "gaps.json").read_text())
    assert len(told) == 2 * len(CASES)
    for gaps in told:
        assert gaps["loss"] < 2e-6
        assert gaps["logits"] < 2e-5
        assert gaps["gradients"] < 2e-6 < gaps["size"] / 1000
        assert gaps["norm"] < 1e-6
        assert gaps["weights"] < 1e-3  # a tenth of what AdamW moves a weight whose gradient is rounding


@pytest.mark.slow
def test_weights_in_bfloat16_that_are_sharded_are_rounded_at_random(ranks: Ranks, tmp_path: Path) -> None:
    """Every process updates its rows as AdamW in float32 would, to one of both neighbors, without bias."""
    assert ranks.run("round_sharded", tmp_path, limit=120) == [0, 0], output(tmp_path, 0)
    one, two = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1))
    assert {entry["dtype"] for entry in one} == {"bfloat16", "float32"}
    assert any(entry["name"].startswith("backbone") for entry in one if entry["dtype"] == "bfloat16")
    for here, there in zip(one, two, strict=True):
        assert here["rows"][0] + there["rows"][0] == here["rows"][1] == there["rows"][1]
        for key in ("moments", "neighbors", "error"):
            assert here[key] == there[key]  # of what is gathered, which is the same in both
        assert here["moments"] < 1e-5
        assert here["neighbors"] <= 1
        # Sum over norm of independent errors is a standard normal number; of all rounded up or down, hundreds.
        assert abs(here["error"]) < (6 if here["dtype"] == "bfloat16" else 1e4)


@pytest.mark.slow
def test_checkpoints_of_a_sharded_model_are_those_of_a_whole_one(ranks: Ranks, tmp_path: Path) -> None:
    one, two, again, onward = (tmp_path / name for name in ("one", "two", "again", "onward"))
    assert ranks.run("train_sharded", one, size=1, sharded=False) == [0]
    assert ranks.run("train_sharded", two) == [0, 0], output(two, 0)
    for folder in (again, onward):
        shutil.copytree(two / "run/checkpoint-3", folder / "run/checkpoint-3")
    assert ranks.run("train_sharded", again, resume=True) == [0, 0]
    assert ranks.run("train_sharded", onward, size=1, sharded=False, resume=True) == [0]
    files = [folder / "run/checkpoint-6" for folder in (one, two, again, onward)]
    for name in ("model", "optimizer"):
        whole, spread, resumed, alone = (load_file(file / f"{name}.safetensors") for file in files)
        assert farthest(spread, resumed) == 0
        assert farthest(whole, spread) < 5e-4
        assert farthest(spread, alone) < 5e-4
    told = [json.loads((file / "config.json").read_text()) for file in files]
    assert told[0].keys() == told[1].keys()
