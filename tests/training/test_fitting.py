"""Runs that cannot fit are refused before anything is loaded, and steps are cut so that they do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from climafuse.cli.app import app
from climafuse.errors import MemoryPlanError
from climafuse.planning import Device, planner
from climafuse.planning.base import Base
from climafuse.training import fitting, pipeline
from climafuse.training.dataset import make_examples, open_store
from climafuse.training.fitting import check_memory, choose_microbatch, workload_of
from climafuse.training.group import Group, local_process_count
from climafuse.training.pipeline import run
from tests.planning.tiny_workload import counted
from tests.training.runs import make_config, save_backbone, settings, write_climate


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return write_climate(folder / "fields.nc"), save_backbone(folder / "backbone")


def _silent(line: str) -> None:
    pass


def _config(parts, output: Path, **changes):
    return make_config(*parts, output, **changes)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "measure", counted)
    monkeypatch.setattr(fitting, "this_machine", lambda *_: Device("this machine", 50_000_000))
    monkeypatch.setattr(planner, "this_machine", lambda *_: Device("this machine", 50_000_000))


def test_what_cannot_fit_is_refused_before_loading(parts, tmp_path, monkeypatch, little_memory):
    def loaded(*arguments, **options):
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(pipeline, "load_backbone", loaded)
    config = _config(parts, tmp_path / "run")
    with pytest.raises(MemoryPlanError, match=r"at most 0.05 GB, which this machine has free"):
        run(config, say=_silent)
    assert not (tmp_path / "run").exists()
    anyway = replace(config, training=replace(config.training, check_memory=False))
    with pytest.raises(AssertionError, match="was loaded"):
        run(anyway, say=_silent)


def test_the_command_line_tells_and_ends_with_one(parts, tmp_path, little_memory):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings(*parts, tmp_path / "run")))
    result = CliRunner().invoke(app, ["train", str(path)])
    assert result.exit_code == 1
    assert "check_memory=false" in result.stderr


def test_what_obviously_fits_is_not_traced(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "this_machine", lambda *_: Device("this machine", 10**11))
    monkeypatch.setattr(fitting, "plan", lambda *a, **k: pytest.fail("it was planned"))
    config = _config(parts, tmp_path / "run")
    store = open_store(config)
    check_memory(config, make_examples(store, "train", config), make_examples(store, "validation", config))


def test_the_workload_is_that_of_the_data(parts, tmp_path):
    config = _config(parts, tmp_path / "run", training={"labels_decided_by_words": 1.0})
    setup = pipeline.assemble(config, say=_silent)
    work = workload_of(config, setup.train, setup.validation, fitting.find_architecture(str(parts[1])))
    texts = [setup.processor.encode(prompt, answer) for prompt, answer in setup.train.texts()]
    assert work.texts_per_window == pytest.approx(len(texts) / len(setup.train))
    assert work.all_labels == work.labels == pytest.approx(sum(len(t) - n for t, n in texts) / len(texts))
    assert work.length == max(len(tokens) for tokens, _ in texts)
    assert work.grid == setup.train[0].window.fields.shape[-2:]
    assert work.windows == 4
    assert work.accumulation == 2
    thinned = replace(config, training=replace(config.training, labels_decided_by_words=0.2))
    fewer = workload_of(thinned, setup.train, setup.validation, fitting.find_architecture(str(parts[1])))
    assert 1 <= fewer.labels < work.labels


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SLURM = {
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),2",
}


@pytest.mark.parametrize(
    ("variables", "local"),
    [
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "2"}, 2),
        (SLURM, 3),
        (SLURM | TORCHRUN | {"SLURM_STEP_TASKS_PER_NODE": "1"}, 8),  # by hand in a shell that Slurm started
        (TORCHRUN, 8),
        (TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, 1),
    ],
)
def test_processes_of_a_machine_share_its_memory(parts, tmp_path, monkeypatch, variables, local):
    for name, value in ({"MASTER_ADDR": "here", "MASTER_PORT": "1"} | variables).items():
        monkeypatch.setenv(name, value)
    assert local_process_count() == local
    config = _config(parts, tmp_path / "run", training={"windows_per_step": 16})
    found = fitting.find_architecture(str(parts[1]))
    assert fitting.configured_workload(config, found).processes == local
    gpu = fitting.configured_workload(config, found, device=Device("a GPU", 1, gpu=True))
    assert gpu.processes == 1  # each has one of its own
    rooms = []
    monkeypatch.setattr(
        planner, "this_machine", lambda *given: rooms.append(given) or Device("large", 10**12)
    )
    monkeypatch.setattr(planner, "measure", counted)
    planner.plan(fitting.configured_workload(config, found), base=1, time=False, search=False)
    assert rooms == [(local,)]


class _Waits(Group):
    """The second of two processes: what the first is asked, it does not do."""

    rank, size = 1, 2

    def first(self, function):
        return None


def test_the_first_process_plans_for_all_before_one_loads(parts, tmp_path, monkeypatch):
    """Another that asked later would count what the first has loaded as taken, and its part of the rest as all."""
    asked = []
    monkeypatch.setattr(pipeline, "check_memory", lambda *arguments: asked.append(len(loaded)))
    monkeypatch.setattr(pipeline, "planned_run", lambda *arguments: asked.append("plan"))
    loaded, load = [], pipeline.load_backbone
    monkeypatch.setattr(pipeline, "load_backbone", lambda *a, **k: loaded.append(1) or load(*a, **k))
    config = _config(parts, tmp_path / "run")
    pipeline.assemble(config, say=_silent, group=_Waits(), tell_plan=True)
    assert (asked, loaded) == ([], [1])
    pipeline.assemble(config, say=_silent, group=Group())
    assert (asked, loaded) == ([1], [1, 1])  # before its own


class _Pace:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


def test_auto_batch_takes_the_largest_that_fits_or_a_faster_one(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "measure", counted)
    config = _config(parts, tmp_path / "run")
    store = open_store(config)
    examples = [make_examples(store, split, config) for split in ("train", "validation")]
    seconds = {4: 1.0, 2: 0.97, 1: 3.0}
    monkeypatch.setattr(fitting, "probe_pace", lambda work, *a, **k: _Pace(seconds[work.microbatch]))
    chosen, told = choose_microbatch(config, *examples)
    assert chosen.training.accumulation == 1
    assert "4 of 4 windows" in told
    seconds[2] = 0.5  # smaller ones are faster: fewer activations leave the cache
    assert choose_microbatch(config, *examples)[0].training.accumulation == 2
    # What fits is asked of each cut as it would run, not guessed from the whole.
    found = fitting.find_architecture(str(parts[1]))
    work = workload_of(config, *examples, found)
    peaks = {
        windows: planner.plan(
            work.with_microbatch(windows), Device("any", 10**12), base=0, time=False, search=False
        ).phases["training"]
        for windows in (1, 2, 4)
    }
    monkeypatch.setattr(fitting, "process_base", lambda *_: Base(0, 0, 0))
    monkeypatch.setattr(fitting, "resident_bytes", lambda: 0)
    seconds[2] = 1.0
    for memory, accumulation in ((peaks[4], 1), (peaks[4] - 1, 2), (peaks[2], 2), (peaks[2] - 1, 4)):
        monkeypatch.setattr(planner, "this_machine", lambda *_, memory=memory: Device("small", memory))
        chosen, told = choose_microbatch(config, *examples)
        assert chosen.training.accumulation == accumulation, told
    monkeypatch.setattr(planner, "this_machine", lambda *_: Device("small", peaks[1] - 1))
    with pytest.raises(MemoryPlanError):
        choose_microbatch(config, *examples)
    anyway = replace(config, training=replace(config.training, check_memory=False))
    chosen, told = choose_microbatch(anyway, *examples)
    assert chosen.training.accumulation == 4
    assert "not even one at most fits" in told


def test_on_a_gpu_only_what_fits_with_no_microbatch_is_refused(parts, tmp_path, monkeypatch):
    """Its memory decides, not that of the machine."""
    monkeypatch.setattr(
        planner, "measure", lambda work, **options: replace(counted(work, **options), evaluation_bytes=0)
    )
    monkeypatch.setattr(planner, "this_machine", lambda *_: Device("small", 1))
    monkeypatch.setattr(fitting, "_obviously_fits", lambda *arguments: False)
    config = _config(parts, tmp_path / "run")
    store = open_store(config)
    examples = [make_examples(store, split, config) for split in ("train", "validation")]
    peaks = {}
    for accumulation in (1, 2, 4):
        settings = replace(config.training, accumulation=accumulation)
        work = workload_of(
            replace(config, training=settings), *examples, fitting.find_architecture(str(parts[1]))
        )
        peaks[accumulation] = planner.plan(
            work, Device("any", 10**12, gpu=True), time=False, search=False
        ).peak
    assert peaks[4] < peaks[2] < peaks[1]
    whole = replace(config, training=replace(config.training, accumulation=1))
    for memory, refused in ((peaks[1], False), (peaks[4], False), (peaks[4] - 1, True)):
        monkeypatch.setattr(fitting, "this_gpu", lambda memory=memory: Device("a GPU", memory, gpu=True))
        if refused:
            with pytest.raises(MemoryPlanError, match="which a GPU has free"):
                check_memory(whole, *examples)
        else:
            check_memory(whole, *examples)
    monkeypatch.setattr(fitting, "this_gpu", lambda: Device("a GPU", peaks[2], gpu=True))
    monkeypatch.setattr(fitting, "probe_pace", lambda *a, **k: pytest.fail("timed on the processor"))
    chosen, told = choose_microbatch(whole, *examples)
    assert chosen.training.accumulation == 2
    assert "2 of 4 windows" in told
    # Of several processes none does a step again.
    monkeypatch.setattr(fitting, "this_gpu", lambda: Device("a GPU", peaks[4], gpu=True))
    check_memory(whole, *examples)
    monkeypatch.setattr(fitting, "process_count", lambda: 2)
    with pytest.raises(MemoryPlanError):
        check_memory(whole, *examples)


def test_what_is_spread_over_processes_counts_in_parts(parts, tmp_path, monkeypatch):
    found, config = fitting.find_architecture(str(parts[1])), _config(parts, tmp_path / "run")

    def spread():
        work = fitting.configured_workload(config, found)
        return work.group, work.spread

    assert spread() == (1, None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert spread() == (1, None)
    names = {"MASTER_ADDR": "here", "MASTER_PORT": "1", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in {**names, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert spread() == (2, "weights")
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert spread() == (2, None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for stage, name in ((1, "moments"), (2, "gradients")):
        asked = tmp_path / f"zero{stage}.json"
        asked.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(asked))
        assert spread() == (2, name)


def test_each_of_several_processes_has_its_share_of_a_step(parts, tmp_path, monkeypatch):
    config = _config(parts, tmp_path / "run")
    found = fitting.find_architecture(str(parts[1]))
    assert fitting.configured_workload(config, found).windows == 4
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for size, windows in ((2, 2), (3, 4)):  # three are refused by the trainer, with its own reason
        monkeypatch.setenv("WORLD_SIZE", str(size))
        work = fitting.configured_workload(config, found)
        assert (work.windows, work.accumulation) == (windows, 2)


def test_a_configuration_is_planned_for_the_products_of_its_device(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "multiplies", lambda dtype, device: False)
    planned = []
    monkeypatch.setattr(fitting, "plan", lambda work, *a, **k: planned.append(work))
    config = _config(parts, tmp_path / "run")
    config = replace(config, backbone=replace(config.backbone, dtype="bfloat16"))
    for device in (None, Device("a GPU", 10**12, gpu=True)):
        for shape in (None, (8, 1.0)):
            fitting.plan_of(config, device=device, shape=shape, time=False)
    assert [(work.precision, work.widened) for work in planned] == [
        ("float32", True),
        ("float32", True),
        ("bfloat16", False),
        ("bfloat16", False),
    ]


def test_without_data_no_text_comes_twice(parts, tmp_path, monkeypatch):
    """Stored states are those of all texts of the run, not of one step."""
    planned = []
    monkeypatch.setattr(fitting, "plan", lambda work, *a, **k: planned.append(work))
    config = _config(parts, tmp_path / "run")
    config = replace(config, data=replace(config.data, train_windows=70, validation_windows=30))
    fitting.plan_of(config, shape=(8, 1.5), time=False)
    assert planned[0].stored_tokens == 100 * 1.5 * 8


def _losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_auto_batch_keeps_the_effective_batch_and_a_resumed_run_its_choice(parts, tmp_path, monkeypatch):
    config = _config(parts, tmp_path / "run", training={"steps": 6, "sampled_vocabulary": None})

    def choose(number):
        def chosen(config, *examples):
            return replace(config, training=replace(config.training, accumulation=number)), "chosen"

        return chosen

    losses = {}
    for number in (1, 4):
        monkeypatch.setattr(pipeline, "choose_microbatch", choose(number))
        output = replace(config.output, directory=str(tmp_path / str(number)))
        planned = run(replace(config, output=output), auto_batch=True, dry_run=True, say=_silent)
        assert planned["accumulation"] == number
        run(replace(config, output=output), auto_batch=True, say=_silent)
        losses[number] = _losses(tmp_path / str(number))
    assert losses[1] == pytest.approx(losses[4], rel=1e-3)  # sums in another order
    # Chosen once: going on, it is read from the checkpoint, whatever would fit now.
    monkeypatch.setattr(pipeline, "choose_microbatch", lambda *a: pytest.fail("chosen anew"))
    longer = replace(config.training, steps=8, schedule="constant")
    output = replace(config.output, directory=str(tmp_path / "4"))
    with pytest.raises(Exception, match="schedule"):  # its settings were read, and accumulation was no fault
        run(replace(config, output=output, training=longer), resume=True, auto_batch=True, say=_silent)
    # Also where the configuration says more: the same command goes on with the same run, and is told how to change it.
    monkeypatch.setattr(pipeline, "choose_microbatch", choose(1))
    told, more = [], replace(config.training, accumulation=4)
    output = replace(config.output, directory=str(tmp_path / "1"))
    result = run(replace(config, output=output, training=more), resume=True, auto_batch=True, say=told.append)
    assert result["accumulation"] == 1
    assert any("1 a step" in line and "without --auto-batch" in line for line in told)
