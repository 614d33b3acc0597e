"""The controls tell apart what is in the prompt, in the place and in the field. Oracle: texts of which that is known.

Every window is asked three questions: one whose prompt gives the answer away, one whose answer is a matter of the
longitude alone, and one whose answer is a matter of the field alone.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from safetensors.torch import load_file

from climafuse.data.pairs import Pair, write_pairs
from climafuse.data.window import Box
from climafuse.errors import CheckpointError, UsageError
from climafuse.evaluation import controls as module
from climafuse.evaluation.controls import CONTROLS, control_config, train_controls
from climafuse.evaluation.questions import questions_of
from climafuse.facts import Fact, parse
from climafuse.model import PrefixStore
from climafuse.training.checkpoint import list_checkpoints
from climafuse.training.config import RunConfig, load_config, read_dataclass
from climafuse.training.dataset import make_examples, open_store
from climafuse.training.pipeline import run
from climafuse.training.trainer import ClimateTextTrainer
from tests.training.runs import save_backbone, settings, write_climate

STEPS = 60
TIMES = np.datetime64("2026-03-01", "ns") + np.arange(60) * np.timedelta64(12, "h")
LATITUDE, LONGITUDE = np.arange(-20.0, 21, 5), np.arange(0.0, 360, 5)


def _silent(line: str) -> None:
    pass


def _three_sources(folder):
    """Fields whose temperature is even in each box of 40° and drawn anew for each box and time."""
    rng = np.random.default_rng(0)
    temperature = rng.uniform(-20, 20, (len(TIMES), 9))  # a box
    fields = np.repeat(temperature, 8, axis=1)[:, None, :].repeat(len(LATITUDE), axis=1) + 273.15
    fields = fields + rng.normal(0, 0.1, fields.shape)
    xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), fields.astype("float32"), {"units": "K"})},
        coords={"time": TIMES, "latitude": LATITUDE, "longitude": LONGITUDE},
    ).to_netcdf(folder / "fields.nc")
    trends = ("rising", "falling", "steady")
    pairs = []
    for step, time in enumerate(TIMES.astype("datetime64[s]")):
        for box in range(9):
            place = Box(0, 40 * box + 17.5, 40, 40)
            trend = trends[rng.integers(3)]
            higher = "north" if box % 2 else "south"
            frost = "yes" if temperature[step, box] < 0 else "no"
            told = (
                (f"Seen {trend}. Is the temperature rising or falling?", f"The temperature is {trend}.",
                 Fact("tendency", "t2m", trend)),
                ("Is the temperature higher in the north or in the south?",
                 f"The temperature is higher in the {higher}.",
                 Fact("comparison", "t2m", higher, (("axis", "north-south"),))),
                ("Any frost?", "There is frost." if frost == "yes" else "There is no frost.",
                 Fact("event", "t2m", frost, (("event", "freezing"),))),
            )  # fmt: skip
            pairs += [
                Pair((time, time), place, prompt, text, (fact.to_dict(),), 9 * step + box)
                for prompt, text, fact in told
            ]
    write_pairs(pairs, folder / "pairs.jsonl")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    _three_sources(folder)
    content = settings(folder / "fields.nc", save_backbone(folder / "backbone"), folder / "run")
    content["data"] |= {"variables": ["t2m"], "history": 1, "pairs": str(folder / "pairs.jsonl")}
    content["encoder"] = {"name": "conv", "options": {"width": 16}}
    content["fusion"] = {"sites": "output", "options": {"heads": 2, "head_width": 16, "feed_forward": 64}}
    content["training"] |= {
        "steps": STEPS,
        "windows_per_step": 12,
        "accumulation": 1,
        "learning_rate": 0.01,
        "evaluation_interval": STEPS // 2,
        "sampled_vocabulary": None,
    }
    content["evaluation"]["max_new_tokens"] = 48
    content["output"]["save_interval"] = 1000
    config = read_dataclass(RunConfig, content)
    run(config, say=_silent)
    return config, train_controls(folder / "run", say=_silent)


def _right(config, model):
    """Share of the test questions answered right, by kind."""
    examples = make_examples(open_store(config), "test", config)
    windows = [example.window for example in examples]
    questions = questions_of(example.pairs for example in examples)
    truths = [Fact.from_dict(pair.facts[0]) for example in examples for pair in example.pairs]
    texts = model.answer(windows, [q.prompt for q in questions], index=[q.window for q in questions])
    right: dict[str, list[bool]] = {}
    for question, truth, text in zip(questions, truths, texts, strict=True):
        right.setdefault(truth.kind, []).append(parse(text, question.prompt) == [truth])
    return {kind: sum(marks) / len(marks) for kind, marks in right.items()}


def test_a_leak_is_seen_by_all_the_place_by_some_and_the_field_by_the_regressor_alone(trained):
    config, controls = trained
    right = {name: _right(config, control.read()) for name, control in controls.items()}
    assert list(right) == ["text_only", "place_only", "regressor"]
    assert right["text_only"]["tendency"] > 0.95
    assert right["place_only"]["tendency"] > 0.95
    assert right["text_only"]["comparison"] < 0.7
    assert right["place_only"]["comparison"] > 0.95
    assert right["text_only"]["event"] < 0.7
    assert right["place_only"]["event"] < 0.7
    assert right["regressor"]["event"] > 0.95
    # It is told the question, not the prompt: what stands beside it is no news.
    assert right["regressor"]["tendency"] < 0.6


def test_controls_do_as_many_steps_as_the_model_and_are_kept(trained):
    config, controls = trained
    for name, control in controls.items():
        assert control.name == name
        assert control.steps == STEPS
        assert not control.reused
        assert control.seconds > 0
        folder = control.model.parent
        assert folder.parts[-3:] == ("evaluation", "controls", name)
        assert {"control.json", "log.jsonl", "model"} <= {path.name for path in folder.iterdir()}
        assert list_checkpoints(folder) == []
        written = load_config(control.model / "run.yaml")
        assert written.training == config.training
        assert written.encoder.name == ("conv" if name == "regressor" else "blind")
    again = train_controls(config.output.directory, say=_silent)
    assert all(control.reused for control in again.values())
    assert [control.seconds for control in again.values()] == [c.seconds for c in controls.values()]
    assert _right(config, again["regressor"].read()) == _right(config, controls["regressor"].read())


# ---- Kept, interrupted, refused: runs of eight steps


@pytest.fixture
def short(controlled_run):
    return load_config(controlled_run / "model" / "run.yaml")


@pytest.fixture
def copy(controlled_run, tmp_path):
    """The run with its controls in another place."""
    return Path(shutil.copytree(controlled_run, tmp_path / "run"))


def _weights(run_folder):
    folder = run_folder / "evaluation" / "controls"
    return {
        name: {
            key: tensor.clone()
            for key, tensor in load_file(folder / name / "model" / "model.safetensors").items()
        }
        for name in CONTROLS
    }


def _same(one, other):
    return all(
        one[name].keys() == other[name].keys()
        and all((one[name][key] == other[name][key]).all() for key in one[name])
        for name in one
    )


def test_a_moved_run_keeps_its_controls(copy):
    controls = train_controls(copy / "model", say=_silent)
    assert all(control.reused for control in controls.values())


def test_what_is_damaged_is_made_anew(copy):
    before = _weights(copy)
    path = copy / "evaluation" / "controls" / "regressor" / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (copy / "evaluation" / "controls" / "text_only" / "control.json").write_text("{")
    controls = train_controls(copy, say=_silent)
    assert {name: c.reused for name, c in controls.items()} == {
        "text_only": False, "place_only": True, "regressor": False,
    }  # fmt: skip
    assert _same(_weights(copy), before)


@pytest.mark.parametrize(
    ("section", "change", "reused"),
    [
        ("training", {"seed": 1}, False),
        ("fusion", {"options": {"heads": 2, "head_width": 4, "feed_forward": 16}}, False),
        ("data", {"test_windows": 7}, True),
        ("training", {"logging_interval": 3}, True),
    ],
)
@pytest.mark.sampled(2)
def test_other_settings_are_another_control(copy, short, section, change, reused):
    config = short
    other = replace(config, **{section: replace(getattr(config, section), **change)})
    (control,) = train_controls(copy, names=["text_only"], config=other, say=_silent).values()
    assert control.reused is reused


def test_another_format_is_made_anew(copy, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 99)
    (control,) = train_controls(copy, names=["regressor"], say=_silent).values()
    assert not control.reused


@pytest.mark.parametrize("name", ["text_only", "regressor"])
@pytest.mark.sampled(2)
def test_an_interrupted_control_goes_on_and_ends_as_an_uninterrupted_one(copy, short, name, monkeypatch):
    whole = _weights(copy)[name]
    shutil.rmtree(copy / "evaluation" / "controls" / name)
    step = ClimateTextTrainer.training_step

    def breaks_off(self, *args, **kwargs):
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ClimateTextTrainer, "training_step", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        train_controls(copy, names=[name], say=_silent)
    record = json.loads((copy / "evaluation" / "controls" / name / "control.json").read_text())
    assert record["seconds"] is None
    steps = []

    def counts(self, *args, **kwargs):
        steps.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ClimateTextTrainer, "training_step", counts)
    (control,) = train_controls(copy, names=[name], say=_silent).values()
    assert not control.reused
    assert sorted(set(steps)) == [4, 5, 6, 7]  # from the checkpoint of step 4
    assert _same({name: _weights(copy)[name]}, {name: whole})


def test_a_control_that_was_interrupted_under_other_settings_begins_anew(copy, monkeypatch):
    record = copy / "evaluation" / "controls" / "text_only" / "control.json"
    content = json.loads(record.read_text())
    content["seconds"] = None
    content["identity"]["settings"]["training.learning_rate"] = 7.0
    record.write_text(json.dumps(content))
    before = _weights(copy)
    train_controls(copy, names=["text_only"], say=_silent)
    assert _same(_weights(copy), before)


def test_states_of_texts_are_computed_once_for_both_language_models(copy, monkeypatch):
    shutil.rmtree(copy / "evaluation")
    computed: list[tuple[int, ...]] = []
    compute = PrefixStore._compute

    def counted(self, texts):
        computed.extend(texts)
        return compute(self, texts)

    monkeypatch.setattr(PrefixStore, "_compute", counted)
    train_controls(copy, names=["text_only", "place_only"], say=_silent)
    assert len(computed) == len(set(computed)) > 10


def test_the_schedule_is_by_steps_and_for_as_many_as_were_done(short, tmp_path):
    config = short
    hurried = replace(
        config,
        training=replace(
            config.training, steps=5000, warmup_steps=100, schedule_by="seconds", max_seconds=60.0, patience=2
        ),
    )
    own = control_config(hurried, steps=80, folder=tmp_path / "x").training
    assert (own.steps, own.schedule_by, own.max_seconds, own.patience) == (80, "steps", None, None)
    assert own.warmup_steps == 79
    assert own.learning_rate == config.training.learning_rate


def test_data_that_the_model_was_not_trained_on_are_refused(copy, tmp_path):
    other = write_climate(tmp_path / "other.nc", seed=5)
    config = load_config(copy / "model" / "run.yaml")
    config = replace(config, data=replace(config.data, source=str(other)))
    with pytest.raises(CheckpointError, match="trained on"):
        train_controls(copy, config=config, say=_silent)


def test_what_has_no_run_is_refused(copy, tmp_path):
    with pytest.raises(UsageError, match="text_only, place_only, regressor"):
        train_controls(copy, names=["blindfold"], say=_silent)
    with pytest.raises(CheckpointError, match=r"run\.yaml"):
        train_controls(tmp_path, say=_silent)
    with pytest.raises(CheckpointError, match="no such folder"):
        train_controls(tmp_path / "nowhere", say=_silent)
