"""DeepSpeed's ZeRO-1 and ZeRO-2 train as one process does, save what it saves, and refuse what would be another run.

Refusals are tested without DeepSpeed; the rest is skipped where it is not installed.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from climafuse.errors import ConfigurationError, TrainingError
from climafuse.training import zero
from climafuse.training.zero import asked_for, check_request, engine_settings
from tests.training.conftest import StandIn
from tests.training.ranks import Ranks, output
from tests.training.runs import save_backbone, write_climate
from tests.training.runs import settings as run_settings
from tests.training.test_distributed import TOLERANCE, farthest, lines, steps, weights

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "distributed" / "deepspeed_zero2.json"
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed (climafuse[deepspeed])"
)
CLIPPED = {"accumulation": 2, "max_gradient_norm": 0.05}  # less than the norm of any of its steps


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as server:
        yield server


def by(path: Path = EXAMPLE) -> dict[str, str]:
    """What a launcher sets for it."""
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}


def stage(number: int, folder: Path) -> dict[str, str]:
    content = json.loads(EXAMPLE.read_text())
    content["zero_optimization"]["stage"] = number
    path = folder / f"zero{number}.json"
    path.write_text(json.dumps(content))
    return by(path)


def saved(folder: Path, step: int) -> list[dict[str, torch.Tensor]]:
    """Weights and moments of a checkpoint."""
    checkpoint = folder / "run" / f"checkpoint-{step}"
    return [load_file(checkpoint / f"{name}.safetensors") for name in ("model", "optimizer")]


# ---- What is refused, before anything is loaded


@pytest.fixture
def request_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Asks for a DeepSpeed configuration, as if DeepSpeed were installed."""
    monkeypatch.setattr(zero, "find_spec", lambda name: object())

    def ask(content: Any, size: int = 2) -> None:
        path = tmp_path / "deepspeed.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        for name, value in by(path).items():
            monkeypatch.setenv(name, value)
        check_request(size)

    return ask


def changed(**entries: Any) -> dict[str, Any]:
    """The example with other entries; `zero` are those of zero_optimization."""
    content = json.loads(EXAMPLE.read_text())
    content["zero_optimization"] |= entries.pop("zero", {})
    return content | entries


def test_the_example_is_accepted(request_of: Any) -> None:
    request_of(json.loads(EXAMPLE.read_text()))
    request_of(changed(fp16={"enabled": False}, bf16={"enabled": "auto"}, zero={"stage": 1}))
    request_of(changed(zero={"offload_optimizer": {"device": "none"}, "overlap_comm": True}))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (changed(zero={"stage": 3}), r"^zero_optimization\.stage: expected 1 or 2; received 3, which spreads"),
        (changed(zero={"stage": 0}), r"^zero_optimization\.stage: expected 1 or 2; received 0\. .*fsdp2\.yaml"),
        (changed(zero={"offload_optimizer": {"device": "cpu"}}), r"^zero_optimization\.offload_optimizer: "),
        (changed(zero={"round_robin_gradients": True}), r"^zero_optimization\.round_robin_gradients: "),
        (changed(fp16={"enabled": True}), r"^fp16: expected none but train_batch_size"),
        (changed(bf16={"enabled": True}), r"^bf16: "),
        (changed(optimizer={"type": "AdamW"}), r"^optimizer: .*own optimizer"),
        (changed(communication_data_type="fp16"), r"^communication_data_type: "),
        ({"train_batch_size": 4}, r"^accelerate: expected a DeepSpeed configuration with zero_optimization"),
        ("{", r"^accelerate: expected a DeepSpeed configuration"),
    ],
)  # fmt: skip
def test_what_would_be_another_run_is_refused(request_of: Any, content: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        request_of(content)


def test_one_process_has_nobody_to_share_with(request_of: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^accelerate: expected several processes.*received one"):
        request_of(changed(), size=1)


def test_a_configuration_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zero, "find_spec", lambda name: object())
    for name, value in by(tmp_path / "none.json").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"received .*none\.json"):
        check_request(2)


def test_processors_by_the_variable_of_accelerate_are_refused(
    request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate would train with DistributedDataParallel and not say so."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigurationError, match=r"^ACCELERATE_USE_CPU: expected unset"):
        request_of(changed())


def test_where_it_is_not_installed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"received an environment without it.*climafuse\[deepspeed\]"):
        check_request(2)


@pytest.mark.parametrize(("value", "asked"), [("true", True), ("1", True), ("false", False), (None, False)])
def test_the_launcher_asks(monkeypatch: pytest.MonkeyPatch, value: str | None, asked: bool) -> None:
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    if value is not None:
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", value)
    assert asked_for() == asked


def test_nothing_imports_deepspeed_on_its_own() -> None:
    """It stands in functions of `zero.py` and nowhere else."""
    found = []
    for path in (ROOT / "climafuse").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "deepspeed" for name in names):
                found.append((path.name, id(node) in inside))
    assert found
    assert set(found) == {("zero.py", True)}


RUN: dict[str, Any] = {
    "microbatch": 2, "accumulation": 3, "size": 4, "max_norm": 0.5, "in_bfloat16": False,
}  # fmt: skip


def test_the_engine_is_told_what_the_run_says() -> None:
    settings = engine_settings(changed(), **RUN)
    assert settings["gradient_clipping"] == 0.5
    assert settings["train_batch_size"] == 8  # of one microbatch: where a step ends, it is told
    assert settings["gradient_accumulation_steps"] == 1
    assert settings["zero_optimization"]["stage"] == 2
    assert engine_settings(changed(), **RUN | {"max_norm": None})["gradient_clipping"] == 0.0
    same = {"train_batch_size": 24, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}
    assert engine_settings(changed(**same), **RUN) == settings
    cast = engine_settings(changed(), **RUN | {"in_bfloat16": True})["torch_autocast"]
    assert cast == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("gradient_clipping", 1.0, 0.5),
        ("gradient_accumulation_steps", 1, 3),
        ("train_batch_size", 8, 24),
        ("train_micro_batch_size_per_gpu", 1, 2),
    ],
)
def test_a_configuration_that_contradicts_the_run_is_refused(key: str, value: Any, right: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf'^{key}: expected {right}, .*received {value}\. .*"auto"'):
        engine_settings(changed(**{key: value}), **RUN)


# ---- What it trains


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_two_processes_are_one(ranks: Ranks, tmp_path: Path, number: int) -> None:
    """Weights, moments, losses, norms by part and evaluations, with gradients clipped and accumulated."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert ranks.run("train", one, size=1, settings=CLIPPED) == [0]
    codes = ranks.run("train", two, settings=CLIPPED, environment=stage(number, tmp_path), limit=240)
    assert codes == [0, 0], output(two, 0) + output(two, 1)
    assert farthest(weights(two, 0), weights(two, 1)) == 0
    assert farthest(weights(one), weights(two)) < TOLERANCE
    for alone, both in zip(saved(one, 7), saved(two, 7), strict=True):
        assert farthest(alone, both) < TOLERANCE
    for single, both in zip(lines(one), lines(two), strict=True):
        assert single.keys() == both.keys()
        assert single == pytest.approx(both, rel=1e-4)
    assert min(line.get("gradient_norm", 1.0) for line in lines(one)) > 0.05  # each step was clipped
    torch.manual_seed(5)
    before = StandIn().state_dict()
    after = weights(two)
    assert farthest(before, after) > 0.1  # it has learned
    assert all(torch.equal(before[name], after[name]) for name in ("backbone.weight", "head.weight"))
    files = {path.name for path in (two / "run" / "checkpoint-7").iterdir()}
    assert files == {path.name for path in (one / "run" / "checkpoint-7").iterdir()}
    assert not output(two, 1)  # the first speaks


@needs_deepspeed
@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_goes_on_without_it(ranks: Ranks, tmp_path: Path) -> None:
    """Killed after its checkpoint, in the middle of an epoch. With dropout, which each process draws for itself."""
    whole, cut, alone, back = (tmp_path / name for name in ("whole", "cut", "alone", "back"))
    call: dict[str, Any] = {"settings": CLIPPED, "output": {"save_interval": 4}, "limit": 240}
    zero2: dict[str, Any] = call | {"environment": by(), "dropout": True}
    assert ranks.run("train", whole, **zero2) == [0, 0]
    assert ranks.run("train", cut, **zero2, event=["SIGKILL", 1, 6])[1] == -9
    assert ranks.run("train", cut, **zero2, resume=True) == [0, 0]
    for rank in (0, 1):
        assert farthest(weights(whole, rank), weights(cut, rank)) == 0
    for one, other in zip(saved(whole, 7), saved(cut, 7), strict=True):
        assert farthest(one, other) == 0
    assert lines(whole) == lines(cut)
    # Without dropout, the number of processes changes nothing, nor does DeepSpeed: from one to two and from two to one.
    zero2["dropout"] = False
    assert ranks.run("train", alone, size=1, **call) == [0]
    assert ranks.run("train", back, **zero2) == [0, 0]
    for folder in (alone, back):
        shutil.rmtree(folder / "run" / "checkpoint-7")
    assert ranks.run("train", alone, **zero2, resume=True) == [0, 0], output(alone, 0)
    assert ranks.run("train", back, size=1, **call, resume=True) == [0]
    for one, other in zip(saved(alone, 7), saved(back, 7), strict=True):
        assert farthest(one, other) < TOLERANCE


@needs_deepspeed
@pytest.mark.slow
def test_a_loss_that_is_not_finite_takes_no_step(ranks: Ranks, tmp_path: Path) -> None:
    constant = {"schedule": "constant"}
    call: dict[str, Any] = {"settings": constant, "environment": by(), "limit": 240}
    assert ranks.run("train", tmp_path / "nan", **call, event=["nan", 0, 7]) == [1, 1]
    order = [steps(tmp_path / "nan", rank)["order"] for rank in (0, 1)]
    ((step, reader),) = [
        (step, rank) for rank in (0, 1) for step, samples, borrowed in order[rank] if 7 in samples and not borrowed
    ]  # fmt: skip
    for rank in (0, 1):
        told = output(tmp_path / "nan", rank)
        assert f"step {step}, process {reader}: expected a finite loss" in told
    assert "from sample 7 alone" in output(tmp_path / "nan", 0)
    # The weights are those before that step.
    assert step == 3
    assert ranks.run("train", tmp_path / "before", size=1, settings=constant | {"steps": 2}) == [0]
    for rank in (0, 1):
        assert farthest(weights(tmp_path / "before"), weights(tmp_path / "nan", rank)) < TOLERANCE


@needs_deepspeed
@pytest.mark.slow
def test_a_signal_to_one_ends_both_with_the_same_step_saved(ranks: Ranks, tmp_path: Path) -> None:
    codes = ranks.run("train", tmp_path, settings={}, environment=by(), event=["SIGTERM", 1, 4], limit=240)
    assert codes == [75, 75]
    assert steps(tmp_path, 0)["step"] == steps(tmp_path, 1)["step"] in (4, 5)


@needs_deepspeed
@pytest.mark.slow
def test_so_does_the_command_by_accelerate(ranks: Ranks, tmp_path: Path) -> None:
    """`accelerate launch` with the shipped files; a language model in bfloat16, a sampled vocabulary, stored states."""
    climate, backbone = write_climate(tmp_path / "c.nc"), save_backbone(tmp_path / "backbone")
    for name in ("one", "two"):
        content = run_settings(climate, backbone, tmp_path / name, training={"precision": "float32"})
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
    assert ranks.run(
        "command", tmp_path / "job", size=1, arguments=["train", str(tmp_path / "one.yaml")]
    ) == [0]
    launch = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
        "--config_file", str(EXAMPLE.with_suffix(".yaml")), "--num_processes", "2", "--main_process_port", "0",
        "-m", "climafuse", "train", str(tmp_path / "two.yaml"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [load_file(tmp_path / name / "checkpoint-8/model.safetensors") for name in ("one", "two")]
    assert farthest(*found) < 1e-4


@needs_deepspeed
@pytest.mark.slow
def test_the_command_refuses_zero3_before_it_loads_anything(ranks: Ranks, tmp_path: Path) -> None:
    call: dict[str, Any] = {"arguments": ["train", str(tmp_path / "none.yaml")], "limit": 240}
    (tmp_path / "none.yaml").write_text(json.dumps({"output": {"directory": str(tmp_path / "run")}}))
    assert ranks.run("command", tmp_path / "job", environment=stage(3, tmp_path), **call) == [2, 2]
    assert "zero_optimization.stage: expected 1 or 2; received 3" in output(tmp_path / "job", 0)
    assert not (tmp_path / "run").exists()
