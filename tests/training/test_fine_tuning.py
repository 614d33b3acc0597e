"""Full fine-tuning through the trainer. Oracles: a loop of plain torch, the uninterrupted run, the files it read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from climafuse.backbones import hash_files, load_backbone
from climafuse.model.inference import load_model
from climafuse.training.callbacks import read_log
from climafuse.training.dataset import ExampleCollator
from climafuse.training.pipeline import assemble, make_trainer, prepare_reuse, run
from tests.training.runs import make_config, save_backbone, write_climate


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return write_climate(folder / "fields.nc"), save_backbone(folder / "backbone")


def _silent(line: str) -> None:
    pass


def _trained(parts: tuple[Path, Path], output: Path, dtype: str, **training: Any) -> Any:
    changes = {
        "backbone": {"trainable": "all", "dtype": dtype},
        "training": {"backbone_learning_rate_scale": 1.0, **training},
    }
    return make_config(*parts, output, **changes)


def test_steps_are_those_of_a_loop_of_plain_torch(parts: tuple[Path, Path], tmp_path: Path) -> None:
    """Within 1e-5 after four steps in float32; rates and decay of each group written out."""
    settings = {
        "steps": 4, "warmup_steps": 0, "schedule": "constant", "sampled_vocabulary": None, "accumulation": 1,
        "labels_decided_by_words": 1.0, "precision": "float32", "max_gradient_norm": None, "keep_best": False,
        "learning_rate": 1e-2, "backbone_learning_rate_scale": 0.1, "gate_learning_rate_scale": 2.0,
    }  # fmt: skip
    config = _trained(parts, tmp_path / "run", "float32", **settings)
    setup, other = assemble(config, say=_silent), assemble(config, say=_silent)
    trainer = make_trainer(setup, progress=False)
    trainer.train()
    model = other.model.train()
    groups: dict[tuple[float, float], list[Any]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and prefix != "backbone.lm_head":  # which is tied
                matrix = parameter.ndim > 1 and not isinstance(module, torch.nn.Embedding)
                gate = not prefix.startswith("backbone") and name.endswith("gate")
                rate = 1e-3 if prefix.startswith("backbone") else 2e-2 if gate else 1e-2
                groups.setdefault((rate, 0.01 if matrix and not gate else 0.0), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
        betas=(0.9, 0.98),
    )
    collate, order = ExampleCollator(other.processor), []
    for epoch in range(2):
        trainer._sampler.set_epoch(epoch)
        order += [list(trainer._sampler)[first : first + 4] for first in range(0, 12, 4)]
    for numbers in order[:4]:
        batch = collate([other.train[number] for number in numbers])
        batch.pop("sample")
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    start = load_backbone(parts[1], dtype="float32").model
    for name, parameter in setup.model.named_parameters():
        other_one = model.get_parameter(name)
        if not parameter.requires_grad:
            assert torch.equal(parameter, other_one)
            continue
        # Of a gradient that is nothing but rounding, such as that of a bias of keys, AdamW takes whole steps, too.
        real = optimizer.state[other_one]["exp_avg_sq"] > 1e-12
        torch.testing.assert_close(parameter[real], other_one[real], rtol=1e-4, atol=1e-5, msg=name)
        assert real.float().mean() > 0.5 or parameter.ndim == 1
        if name.startswith("backbone."):  # all of it has learned
            assert not torch.equal(parameter, start.get_parameter(name.removeprefix("backbone."))), name


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_run_saves_what_it_trained_and_is_resumed_bit_for_bit(
    parts: tuple[Path, Path], tmp_path: Path, dtype: str
) -> None:
    before = hash_files(parts[1], verify=True)
    told: list[str] = []
    run(_trained(parts, tmp_path / "whole", dtype), say=told.append)
    assert any("fine-tuned" in line for line in told)
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", resumed / "checkpoint-4")
    run(_trained(parts, resumed, dtype), resume=True, say=_silent)
    one, other = (
        load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "whole", resumed)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [
        [line["loss"] for line in read_log(folder / "log.jsonl") if "loss" in line and line["step"] > 4]
        for folder in (tmp_path / "whole", resumed)
    ]
    assert lines[0] == lines[1] != []
    moments = load_file(tmp_path / "whole" / "checkpoint-8" / "optimizer.safetensors")
    assert {tensor.dtype for tensor in moments.values()} == {torch.float32}
    own = {name for name in one if name.startswith("backbone.")}
    assert {str(one[name].dtype) for name in own} == {f"torch.{dtype}"}
    start = load_backbone(parts[1], dtype=dtype).model
    changed = [name for name in own if not torch.equal(one[name], start.get_parameter(name[9:]))]
    assert len(changed) == len(own) == len(list(start.parameters()))
    assert hash_files(parts[1], verify=True) == before  # the files that were read are what they were
    # Loaded for its users, it is what was saved.
    reader = load_model(tmp_path / "whole" / "model")
    assert torch.equal(
        reader.model.backbone.get_parameter("model.norm.weight"), one["backbone.model.norm.weight"]
    )
    assert json.loads((resumed / "run.json").read_text())["trainable_parameters"] == sum(
        tensor.numel() for tensor in one.values()
    )


def test_frozen_blocks_stay_bitwise_and_their_states_are_stored(
    parts: tuple[Path, Path], tmp_path: Path
) -> None:
    config = make_config(*parts, tmp_path / "run", backbone={"trainable": {"last": 1}})
    setup = assemble(config, say=_silent)
    start = {name: p.detach().clone() for name, p in setup.model.backbone.named_parameters()}
    prepare_reuse(setup, say=_silent)
    assert setup.model.prefix_store is not None
    assert setup.model.prefix_store.site == 2  # the fusion there is below block 3
    make_trainer(setup, progress=False).train()
    for name, parameter in setup.model.backbone.named_parameters():
        assert torch.equal(parameter, start[name]) == (".layers.3." not in name), name
