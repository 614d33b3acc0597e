"""A run from configuration to saved model, on a tiny backbone: repeatable, resumable, and it writes what it says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from climafuse.backbones import hash_parameters
from climafuse.data.pairs import Pair, write_pairs
from climafuse.data.window import Box
from climafuse.errors import (
    BackboneError,
    CheckpointError,
    ClimafuseError,
    ConfigurationError,
    ModelInputError,
    OutputError,
    TrainingError,
)
from climafuse.model import ClimateTextForCausalLM, DiskStates, MemoryStates, PrefixStore, stored_states
from climafuse.model.inference import load_model
from climafuse.training import pipeline
from climafuse.training.callbacks import RunClock
from climafuse.training.output import check_room
from climafuse.training.pipeline import assemble, make_trainer, prepare_reuse, run
from tests.training.runs import TIMES, make_config, save_backbone, write_climate


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return write_climate(folder / "fields.nc"), save_backbone(folder / "backbone")


def _silent(line: str) -> None:
    pass


def _losses(output: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def finished(parts, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "first"
    told: list[str] = []
    return output, run(make_config(*parts, output), say=told.append), told


def test_a_run_tells_and_saves_what_it_did(finished, parts):
    output, result, told = finished
    assert result["steps"] == 8
    assert result["stopped_by"] == "steps"
    assert result["sites"] == ["2", "output"]
    assert result["train"]["windows"] == 12
    assert result["validation"]["windows"] == 4
    assert 0 < result["validation_loss"] < 20
    assert result["train_seconds"] > 0
    assert result["model"] == str(output / "model")
    json.dumps(result, allow_nan=False)
    assert [line.split(":")[0] for line in told if ":" in line][:2] == ["data", "model"]
    assert any("trained 8 steps" in line for line in told)
    model = load_model(output / "model").model
    assert (
        sum(tensor.numel() for tensor in model.trainable_state_dict().values())
        == result["trainable_parameters"]
    )
    card = (output / "model" / "README.md").read_text()
    assert f"{result['train']['texts']:,} texts about 12 windows" in card
    assert _losses(output)[-1][0] == 8


def test_what_a_model_was_trained_on_travels_with_it(finished):
    output, _, _ = finished
    record = json.loads((output / "run.json").read_text())
    folders = [output / "model", *output.glob("checkpoint-*")]
    assert len(folders) >= 2
    for folder in folders:
        assert json.loads((folder / "data.json").read_text()) == {
            key: record[key] for key in ("splits", "identity")
        }
        assert "data.json" in json.loads((folder / "manifest.json").read_text())["files"]
        assert set(record["identity"]["splits"]) == {"train", "validation", "test"}
        assert str(output.parent) not in (folder / "data.json").read_text()  # no place of this machine


def test_a_run_records_what_neither_log_nor_model_tells(finished, parts):
    output, result, _ = finished
    record = json.loads((output / "run.json").read_text())
    assert record["train"] == result["train"]
    assert record["train_seconds"] == result["train_seconds"]
    # Twenty half days from 1 March, less one in each gap of a day: 18 × 0.6 = 11 for training.
    assert record["splits"]["train"] == ["2026-03-01T00:00", "2026-03-06T00:00"]
    assert record["splits"]["train"][1] < record["splits"]["validation"][0]
    assert record["splits"]["validation"][1] < record["splits"]["test"][0]
    assert record["machine"]["cores"] >= 1
    assert record["license"] is None  # the file states none
    assert str(output) not in json.dumps(record)


def test_the_gap_compares_what_is_measured_alike(parts, tmp_path):
    """Oracle: of the validation samples in the place of training ones, both losses are the same number."""
    setup = assemble(make_config(*parts, tmp_path / "run", training={"gap_windows": 5}), say=_silent)
    trainer = make_trainer(setup, progress=False)
    assert len(trainer.train_loader.dataset) == 5
    thinned = [trainer.data_collator([setup.train[n]])["labels"].ne(-100).sum() for n in (0, 11)]
    whole = [trainer.train_loader.collate_fn([setup.train[n]])["labels"].ne(-100).sum() for n in (0, 11)]
    assert sum(whole) > sum(thinned)  # as of the validation samples, no label is left out
    trainer.evaluate()
    first, second = trainer.state.log_history[-2:]
    assert first["eval_loss"] != second["eval_train_loss"]
    trainer.train_loader = trainer.get_eval_dataloader()
    trainer.evaluate()
    first, second = trainer.state.log_history[-2:]
    assert first["eval_loss"] == second["eval_train_loss"]
    none = assemble(make_config(*parts, tmp_path / "run", training={"gap_windows": 0}), say=_silent)
    assert make_trainer(none, progress=False).train_loader is None


def test_the_same_seed_gives_the_same_losses_and_weights(finished, parts, tmp_path):
    output, _, _ = finished
    run(make_config(*parts, tmp_path / "again"), say=_silent)
    assert _losses(tmp_path / "again") == _losses(output)
    one, other = (
        load_file(folder / "model" / "model.safetensors") for folder in (output, tmp_path / "again")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    run(make_config(*parts, tmp_path / "other", training={"seed": 1, "steps": 2}), say=_silent)
    assert _losses(tmp_path / "other") != _losses(output)[:2]


def test_an_interrupted_run_goes_on_bit_for_bit(finished, parts, tmp_path, monkeypatch):
    """With stored states, sampled vocabulary and thinned labels on."""
    start = RunClock.start
    output, _, _ = finished
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copytree(output / "checkpoint-4", resumed / "checkpoint-4")
    setup = assemble(make_config(*parts, resumed), say=_silent)
    prepare_reuse(setup, say=_silent)
    assert setup.model.prefix_store is not None
    assert setup.model.sampled_vocabulary is not None
    assert setup.thinning is not None
    started = []
    monkeypatch.setattr(
        RunClock, "start", lambda self, before=0.0: started.append(before) or start(self, 1000.0)
    )
    result = run(make_config(*parts, resumed), resume=True, say=_silent)
    assert result["steps"] == 8
    assert started[0] > 0
    assert result["train_seconds"] > 1000  # what was trained before counts, too
    assert _losses(resumed) == [entry for entry in _losses(output) if entry[0] > 4]
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (output, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_vocabulary_is_chosen_in_parts_where_memory_is_short(parts, tmp_path, monkeypatch):
    def chosen():
        setup = assemble(make_config(*parts, tmp_path / "run"), say=_silent)
        prepare_reuse(setup, say=_silent)
        return setup.model.sampled_vocabulary.kept

    whole = chosen()
    ask, asked = ClimateTextForCausalLM.likely_tokens, []

    def ask_few(self, input_ids, *others, **options):
        if len(input_ids) > 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        asked.append(len(input_ids))
        return ask(self, input_ids, *others, **options)

    monkeypatch.setattr(ClimateTextForCausalLM, "likely_tokens", ask_few)
    assert torch.equal(chosen(), whole)
    assert max(asked) > 1


def test_states_on_the_disk_give_the_same_run_and_are_found_by_the_next(
    finished, parts, tmp_path, monkeypatch
):
    """Bit for bit the run with states in memory, resumed from a checkpoint of it, too."""
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path / "home"))
    output, _, _ = finished
    computed: list[int] = []
    compute = PrefixStore._compute
    monkeypatch.setattr(
        PrefixStore, "_compute", lambda self, texts: computed.append(len(texts)) or compute(self, texts)
    )
    on_disk = {"training": {"reuse_prefix": "disk", "prefix_store_gb": 0.1}}
    run(make_config(*parts, tmp_path / "first", **on_disk), say=_silent)
    assert computed
    assert list((tmp_path / "home" / "prefix_states").rglob("*.safetensors"))
    del computed[:]
    (tmp_path / "second").mkdir()
    shutil.copytree(output / "checkpoint-4", tmp_path / "second" / "checkpoint-4")
    run(make_config(*parts, tmp_path / "second", **on_disk), resume=True, say=_silent)
    assert computed == []
    ones = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("first", "second")]
    other = load_file(output / "model" / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for one in ones for name in other)


@pytest.mark.parametrize(("fsdp", "expected"), [("false", "meta"), ("true", "cpu")])
def test_states_are_computed_where_the_model_is_trained(parts, tmp_path, monkeypatch, fsdp, expected):
    """On a GPU that is not the processor; but where FSDP spreads weights, a whole model may not fit there."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", fsdp)
    monkeypatch.setattr(pipeline.sharding, "check_request", lambda *, on_cpu: None)
    monkeypatch.setattr(pipeline, "PartialState", lambda: SimpleNamespace(device=torch.device("meta")))

    def store(backbone, *arguments, **options):
        assert {tensor.device.type for tensor in backbone.parameters()} == {expected}
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "PrefixStore", store)
    with pytest.raises(ZeroDivisionError):
        run(make_config(*parts, tmp_path / "run"), say=_silent)


def test_states_go_to_the_disk_where_memory_has_no_room(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path / "home"))
    kinds = {"memory": MemoryStates, True: MemoryStates, "disk": DiskStates}
    for setting, kind in kinds.items():
        setup = assemble(
            make_config(*parts, tmp_path / "run", training={"reuse_prefix": setting}), say=_silent
        )
        prepare_reuse(setup, say=_silent)
        assert type(setup.model.prefix_store.states) is kind
    monkeypatch.setattr(stored_states, "free_memory", lambda device: 4000)
    setup = assemble(make_config(*parts, tmp_path / "run"), say=_silent)
    prepare_reuse(setup, say=_silent)
    assert type(setup.model.prefix_store.states) is DiskStates


def test_frozen_weights_are_the_same_after_training_and_trained_ones_are_not(parts, tmp_path):
    setup = assemble(make_config(*parts, tmp_path / "run", training={"steps": 2}), say=_silent)
    prepare_reuse(setup, say=_silent)
    frozen = hash_parameters(setup.model.backbone)
    trained = {name: tensor.clone() for name, tensor in setup.model.trainable_state_dict().items()}
    make_trainer(setup, progress=False).train()
    assert hash_parameters(setup.model.backbone) == frozen
    after = setup.model.trainable_state_dict()
    gates = [name for name in trained if name.endswith("gate")]
    assert gates
    assert all(not torch.equal(trained[name], after[name]) for name in gates)


def test_an_untrained_model_is_the_bare_backbone(parts, tmp_path):
    """Gates of zero: its loss on the validation texts is that of the language model alone."""
    setup = assemble(make_config(*parts, tmp_path / "run"), say=_silent)
    trainer = make_trainer(setup, progress=False)
    batch = trainer.data_collator(setup.validation[:2])
    batch.pop("sample")
    setup.model.eval()
    ours = setup.model(**batch).loss.detach()
    texts = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    assert float(ours) == pytest.approx(float(setup.model.backbone(**texts).loss), rel=1e-5)


def test_learning_the_texts_lowers_the_loss(parts, tmp_path):
    changes = {
        "training": {"steps": 20, "learning_rate": 0.05, "evaluation_interval": 10},
        "output": {"save_interval": 20},
    }
    result = run(make_config(*parts, tmp_path / "run", **changes), say=_silent)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert result["validation_loss"] == min(line["eval_loss"] for line in lines if "eval_loss" in line)


@pytest.mark.parametrize("never", [False, "off"])
def test_everything_off_works_too(parts, tmp_path, never):
    off = {"reuse_prefix": never, "sampled_vocabulary": None, "labels_decided_by_words": 1.0, "steps": 2}
    setup = assemble(make_config(*parts, tmp_path / "run", training=off), say=_silent)
    prepare_reuse(setup, say=_silent)
    assert setup.model.prefix_store is None
    assert setup.model.sampled_vocabulary is None
    assert setup.thinning is None
    assert run(make_config(*parts, tmp_path / "run", training=off), say=_silent)["steps"] == 2


def test_pairs_of_the_user_from_file_to_model(parts, tmp_path):
    times = [time.astype("datetime64[s]") for time in TIMES]
    write_pairs(
        (
            Pair((time, time), Box(40, 10, 40, 40), "Sky?", f"Report {n}.", (), n)
            for n, time in enumerate(times)
        ),
        tmp_path / "pairs.jsonl",
    )
    changes = {"data": {"pairs": str(tmp_path / "pairs.jsonl")}, "training": {"steps": 2}}
    result = run(make_config(*parts, tmp_path / "run", **changes), say=_silent)
    # 20 half days make 10 or so training steps; the first of a split has its history outside.
    assert result["train"]["texts"] == result["train"]["windows"] == result["train"]["distinct"]
    reader = load_model(tmp_path / "run" / "model", max_new_tokens=3)
    setup = assemble(make_config(*parts, tmp_path / "other", **changes), say=_silent)
    assert len(reader.answer([setup.validation[0].window], ["Sky?"])) == 1


def test_texts_too_long_for_the_backbone_are_refused_before_training(parts, tmp_path):
    times = [time.astype("datetime64[s]") for time in TIMES]
    # 256 positions; an x is a token. Time 5 is one of training.
    write_pairs(
        (
            Pair((time, time), Box(40, 10, 40, 40), "Sky?", "x" * 300 if n == 5 else "Blue.", (), n)
            for n, time in enumerate(times)
        ),
        tmp_path / "pairs.jsonl",
    )
    changes = {"data": {"pairs": str(tmp_path / "pairs.jsonl")}}
    with pytest.raises(ModelInputError, match="at most 256 tokens, for which LlamaForCausalLM has positions"):
        assemble(make_config(*parts, tmp_path / "run", **changes), say=_silent)


def test_dry_run_checks_and_writes_nothing(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Of its plan tells tests/test_cli_end_to_end.py.
    monkeypatch.setattr("climafuse.training.pipeline.planned_run", lambda *_: None)
    result = run(make_config(*parts, tmp_path / "run"), dry_run=True, say=_silent)
    assert result["trainable_parameters"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_has_to_fit_on_the_disk(finished, parts, tmp_path, monkeypatch):
    """Bytes of the tensors of one that was written; a run may take the room of what it overwrites."""
    output, _, _ = finished
    tensors = [load_file(output / "checkpoint-8" / f"{name}.safetensors") for name in ("model", "optimizer")]
    size = sum(value.nbytes for part in tensors for key, value in part.items() if not key.endswith(":step"))
    free = [size - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    config = make_config(*parts, tmp_path / "run")
    with pytest.raises(OutputError, match=r"^.*run: expected room for a checkpoint .* for 3 .*received"):
        run(config, say=_silent)
    assert list(tmp_path.iterdir()) == []
    check_room(replace(config.output, directory=str(output)), size, resumed=False)
    with pytest.raises(OutputError):
        check_room(replace(config.output, directory=str(output)), size, resumed=True)
    free[0] = size
    check_room(config.output, pipeline._checkpoint_bytes(assemble(config, say=_silent).model), resumed=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": {"name": "grid_transformr"}}, "Did you mean 'grid_transformer'"),
        ({"fusion": {"name": "cross_atention"}}, "Did you mean 'cross_attention'"),
        ({"encoder": {"options": {"widht": 16}}}, "Did you mean 'width'"),
        ({"fusion": {"options": {"head": 2}}}, "Did you mean 'heads'"),
        (
            {"fusion": {"options": {"heads": "two"}}},
            r"fusion\.options\.heads.*a whole number; received 'two'",
        ),
        ({"encoder": {"options": {"summary": 1}}}, r"encoder\.options\.summary.*true or false"),
    ],
)
def test_names_and_options_are_checked_before_any_data_is_read(tmp_path, changes, words):
    config = make_config(tmp_path / "no.nc", tmp_path / "no-backbone", tmp_path / "run", **changes)
    with pytest.raises(ConfigurationError, match=words):
        assemble(config, say=_silent)


@pytest.mark.parametrize("variable", [None, "ACCELERATE_USE_CPU"])
def test_sharding_on_processors_is_refused_before_any_data_is_read(tmp_path, monkeypatch, variable):
    """Accelerate would train with DistributedDataParallel and not say so."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    gpu = variable is not None  # then, with one
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    if gpu:
        monkeypatch.setenv(variable, "true")
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    config = make_config(tmp_path / "no.nc", tmp_path / "no-backbone", tmp_path / "run")
    with pytest.raises(
        ConfigurationError, match=rf"^ACCELERATE_USE_FSDP: .*{variable or 'no GPU'}.*DDP.*ZeRO"
    ):
        run(config, say=_silent)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": {"dtype": "bfloat16", "trainable": "all"}}, r"^backbone\.dtype: .*received bfloat16"),
        ({"training": {"windows_per_step": 6}}, r"^training\.windows_per_step: .*2 × 2; received 6"),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_before_any_data_is_read(
    tmp_path, monkeypatch, changes, words
):
    names = {"MASTER_ADDR": "here", "MASTER_PORT": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for name, value in {**names, "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    config = make_config(tmp_path / "no.nc", tmp_path / "no-backbone", tmp_path / "run", **changes)
    with pytest.raises((ConfigurationError, TrainingError), match=words):
        assemble(config, say=_silent)
    if "training" in changes:  # what is still to be chosen is not refused
        with pytest.raises(ClimafuseError, match=r"no\.nc"):
            assemble(config, say=_silent, auto_batch=True)


@pytest.mark.parametrize("sites", [[9], {"last": 9}, "nowhere"])
def test_sites_that_the_backbone_lacks(parts, tmp_path, sites):
    with pytest.raises((ConfigurationError, BackboneError), match="site"):
        assemble(make_config(*parts, tmp_path / "run", fusion={"sites": sites}), say=_silent)


def test_a_taken_folder_is_refused_before_any_data_is_read(finished, tmp_path):
    output, _, _ = finished
    with pytest.raises(TrainingError, match="checkpoint-8"):
        run(make_config(tmp_path / "no.nc", tmp_path / "no-backbone", output), say=_silent)


def test_a_setting_that_may_not_change_is_refused_before_any_data_is_read(finished, tmp_path):
    output, _, _ = finished
    changes = {"training": {"learning_rate": 0.1}}
    config = make_config(tmp_path / "no.nc", tmp_path / "no-backbone", output, **changes)
    with pytest.raises(
        CheckpointError, match=r"^training\.learning_rate: .*as in checkpoint-8; received 0\.1"
    ):
        run(config, resume=True, say=_silent)
