"""The real path through the command line: train, resume, infer; and every error a user meets, in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from climafuse.backbones import DEFAULT_BACKBONE, find_backbone
from climafuse.cli.app import app
from climafuse.data.pairs import Pair, read_pairs, write_pairs
from climafuse.data.samples import sample_path
from climafuse.data.sources import open_climate
from climafuse.errors import BackboneNotFoundError
from climafuse.model import inference
from climafuse.model.modeling import ClimateTextForCausalLM
from tests.training.runs import TIMES, write_climate

runner = CliRunner()
LAST = "2026-03-10T12:00"


@pytest.fixture(scope="module")
def place(finished_run):
    """Climate file, backbone, configuration and a finished run."""
    return finished_run


def _weights(run: Path):
    return load_file(run / "model" / "model.safetensors")


# ---- What works ----------------------------------------------------------------------------------------------


def test_train_leaves_a_model_and_says_so_on_standard_output(place):
    result = json.loads((place / "result.json").read_text())
    assert result["model"] == str(place / "run" / "model")
    assert result["steps"] == 8
    names = {path.name for path in (place / "run" / "model").iterdir()}
    assert {"config.json", "model.safetensors", "manifest.json", "README.md", "run.yaml"} <= names
    assert not [path for path in (place / "run").iterdir() if path.name.startswith(("tmp-", "."))]


def test_a_written_configuration_trains_the_same_model(place, tmp_path):
    arguments = ["train", str(place / "run" / "model" / "run.yaml"), "--output", str(tmp_path / "run: 2")]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    one, other = _weights(place / "run"), _weights(tmp_path / "run: 2")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resume_continues_bit_for_bit(place, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copytree(place / "run" / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    (tmp_path / "run" / "tmp-checkpoint-8").mkdir()  # what a killed process leaves behind
    arguments = ["train", str(place / "run.yaml"), "--output", str(tmp_path / "run")]
    refused = runner.invoke(app, arguments)
    assert "Resume that run" in _one_line_error(refused, 1)
    result = runner.invoke(app, [*arguments, "--resume"])
    assert result.exit_code == 0, result.output
    one, other = _weights(place / "run"), _weights(tmp_path / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "run" / "tmp-checkpoint-8").exists()


def test_the_time_limit_is_written_as_it_was_given(place, tmp_path):
    """Preparation counts, so that the trainer gets less; the next run must not inherit that."""
    arguments = [
        "train",
        str(place / "run.yaml"),
        "--output",
        str(tmp_path / "run"),
        "--set",
        "training.steps=1",
    ]
    assert runner.invoke(app, [*arguments, "--set", "training.max_seconds=300"]).exit_code == 0
    written = yaml.safe_load((tmp_path / "run" / "model" / "run.yaml").read_text())
    assert written["training"]["max_seconds"] == 300


def test_dry_run_prints_a_configuration_that_reads_back(place, tmp_path, monkeypatch):
    arguments = ["train", str(place / "run.yaml"), "--output", str(tmp_path / "run"), "--dry-run"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    printed = yaml.safe_load(result.stdout)
    assert printed["output"]["directory"] == str(tmp_path / "run")
    assert printed["training"]["steps"] == 8
    monkeypatch.setattr("climafuse.training.pipeline.planned_run", lambda *_: None)  # once is enough
    assert json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)["trainable_parameters"] > 0
    assert list(tmp_path.iterdir()) == []


def _infer(place, *arguments, climate=None):
    climate = place / "fields.nc" if climate is None else climate
    return ["infer", str(place / "run" / "model"), "--climate", str(climate), *map(str, arguments)]


QUESTION = ("--time", LAST, "--location", "48.9,2.3", "--prompt", "What is the mean temperature?")


def test_infer_on_a_file_that_was_not_in_training(place, tmp_path):
    other = write_climate(tmp_path / "other.nc", seed=5, region=True)
    arguments = (*QUESTION, "--json")
    result = runner.invoke(app, _infer(place, *arguments, "--map", tmp_path / "map.png", climate=other))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) >= {"prompt", "answer", "place", "time", "facts", "seconds", "map"}
    assert found["time"] == LAST
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    again = json.loads(runner.invoke(app, _infer(place, *arguments, climate=other)).stdout)
    assert again["answer"] == found["answer"]


def test_pairs_of_the_user_through_the_command_line(place, tmp_path):
    times = [time.astype("datetime64[s]") for time in TIMES]
    write_pairs(
        (Pair((t, t), None, "Sky?", f"Report {n}.", (), n) for n, t in enumerate(times)), tmp_path / "p.csv"
    )
    settings = ["--set", f"data.pairs={tmp_path / 'p.csv'}", "--set", "training.steps=2", "--json"]
    arguments = ["train", str(place / "run.yaml"), "--output", str(tmp_path / "run"), *settings]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["train"]["texts"] == json.loads(result.stdout)["train"]["windows"]


def test_from_a_prepared_store(place, tmp_path):
    prepared = runner.invoke(app, ["data", "prepare", str(place / "fields.nc"), str(tmp_path / "store")])
    assert prepared.exit_code == 0, prepared.output
    arguments = ["train", str(place / "run.yaml"), "--output", str(tmp_path / "run")]
    result = runner.invoke(app, [*arguments, "--set", f"data.source={tmp_path / 'store'}"])
    assert result.exit_code == 0, result.output
    # The same fields, the same splits and the same seed: the same model.
    one, other = _weights(place / "run"), _weights(tmp_path / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_moved_backbone_is_named(place, tmp_path):
    shutil.copytree(place / "run" / "model", tmp_path / "model")
    content = (tmp_path / "model" / "config.json").read_text()
    assert str(place / "backbone") in content  # its place is recorded, its weights are not copied
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < (
        place / "backbone" / "model.safetensors"
    ).stat().st_size


# ---- What does not -------------------------------------------------------------------------------------------


def _one_line_error(result, code):
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert lines[-1] == errors[0]
    assert "Traceback" not in result.stderr
    return errors[0]


def _truncated(place, folder):
    path = folder / "truncated.nc"
    content = (place / "fields.nc").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def _without_pressure(place, folder):
    with xr.open_dataset(place / "fields.nc") as dataset:
        dataset.drop_vars("msl").to_netcdf(folder / "without.nc")
    return folder / "without.nc"


def _all_missing(place, folder):
    with xr.open_dataset(place / "fields.nc") as dataset:
        dataset.where(dataset["latitude"] > 99).to_netcdf(folder / "missing.nc")
    return folder / "missing.nc"


def _region(place, folder):
    return write_climate(folder / "region.nc", region=True)


def _nothing(place, folder):
    return folder / "none.nc"


def _whole(place, folder):
    return place / "fields.nc"


INFER_ERRORS = [
    pytest.param(_nothing, ("--time", LAST), 1, "none.nc", id="missing file"),
    pytest.param(_truncated, ("--time", LAST), 1, "truncated.nc", id="truncated NetCDF"),
    pytest.param(_without_pressure, ("--time", LAST), 1, "msl", id="absent variable"),
    pytest.param(_all_missing, ("--time", LAST), 1, "missing values only", id="all missing"),
    pytest.param(_whole, ("--time", "2027-01-01"), 1, "2026-03-10", id="time outside"),
    pytest.param(_whole, ("--time", "2026-03-10T11:00"), 1, "2026-03-10", id="time between"),
    pytest.param(_whole, ("--time", "tomorrow"), 2, "tomorrow", id="no time"),
    pytest.param(_region, ("--time", LAST, "--location", "-30,100"), 1, "100", id="place outside"),
    pytest.param(_whole, ("--time", LAST, "--location", "Qwertzuiop"), 2, "Qwertzuiop", id="no place"),
    pytest.param(_whole, ("--time", LAST, "--location", "95,0"), 2, "95", id="no latitude"),
]


@pytest.mark.parametrize(("climate", "arguments", "code", "words"), INFER_ERRORS)
def test_infer_refusals(place, tmp_path, climate, arguments, code, words):
    source = climate(place, tmp_path)
    before = sorted(tmp_path.iterdir())
    # The map would be the half-written thing.
    full = _infer(place, *arguments, "--whole-grid", "--map", tmp_path / "map.png", climate=source)
    assert words in _one_line_error(runner.invoke(app, full), code)
    assert sorted(tmp_path.iterdir()) == before


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "manifest.json"])
def test_a_model_with_a_flipped_bit(place, tmp_path, name):
    shutil.copytree(place / "run" / "model", tmp_path / "model")
    _flip(tmp_path / "model" / name)
    arguments = ["infer", str(tmp_path / "model"), "--climate", str(place / "fields.nc"), "--time", LAST]
    assert name in _one_line_error(runner.invoke(app, arguments), 1)


def test_a_checkpoint_with_a_flipped_bit_is_not_resumed_from(place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run" / "checkpoint-4", run / "checkpoint-4")
    _flip(run / "checkpoint-4" / "model.safetensors")
    arguments = ["train", str(place / "run.yaml"), "--output", str(run), "--resume"]
    before = sorted(run.rglob("*"))
    assert "model.safetensors" in _one_line_error(runner.invoke(app, arguments), 1)
    assert sorted(run.rglob("*")) == before


def test_no_model_at_all(place, tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        arguments = ["infer", str(folder), "--climate", str(place / "fields.nc"), "--time", LAST]
        assert str(folder) in _one_line_error(runner.invoke(app, arguments), 1)


def test_a_model_whose_backbone_has_changed(place, tmp_path):
    from tests.tiny import tiny_model

    shutil.copytree(place / "run" / "model", tmp_path / "model")
    shutil.copytree(place / "backbone", tmp_path / "backbone")
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "backbone")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace(str(place / "backbone"), str(tmp_path / "backbone")))
    (tmp_path / "model" / "manifest.json").unlink()
    arguments = ["infer", str(tmp_path / "model"), "--climate", str(place / "fields.nc"), "--time", LAST]
    assert "sha256" in _one_line_error(runner.invoke(app, arguments), 1).lower()


def _empty_backbone(place, folder):
    shutil.copytree(place / "backbone", folder / "empty")
    (folder / "empty" / "model.safetensors").unlink()
    return {"backbone.name": folder / "empty"}, 1, "empty"


def _truncated_backbone(place, folder):
    shutil.copytree(place / "backbone", folder / "cut")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return {"backbone.name": folder / "cut"}, 1, "model.safetensors"


def _malformed_pair(place, folder):
    time = str(TIMES[3].astype("datetime64[s]"))
    lines = [{"time": time, "text": "Fine."}, {"time": "when?", "text": "Which time is that?"}]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"data.pairs": folder / "pairs.jsonl"}, 1, "line 2"


def _pair_elsewhere(place, folder):
    (folder / "pairs.jsonl").write_text(json.dumps({"time": "1999-01-01", "text": "Long ago."}))
    return {"data.pairs": folder / "pairs.jsonl"}, 1, "pairs.jsonl, line 1"


TRAIN_ERRORS = {
    "missing file": lambda place, folder: ({"data.source": folder / "none.nc"}, 1, "none.nc"),
    "truncated NetCDF": lambda place, folder: ({"data.source": _truncated(place, folder)}, 1, "truncated.nc"),
    "absent variable": lambda place, folder: ({"data.source": _without_pressure(place, folder)}, 1, "msl"),
    "all missing": lambda place, folder: ({"data.source": _all_missing(place, folder)}, 1, "t2m"),
    "malformed pair": _malformed_pair,
    "pair about another time": _pair_elsewhere,
    "backbone without weights": _empty_backbone,
    "truncated backbone": _truncated_backbone,
    "no backbone": lambda place, folder: ({"backbone.name": folder / "nowhere"}, 1, "nowhere"),
    "unknown key": lambda place, folder: ({"training.stepz": 3}, 2, "'steps'"),
    "unknown section": lambda place, folder: ({"trainig.steps": 3}, 2, "'training'"),
    "wrong type": lambda place, folder: ({"training.steps": "many"}, 2, "training.steps"),
    "unknown metric": lambda place, folder: ({"training.best_metric": "f1"}, 2, "training.best_metric"),
    "unknown encoder": lambda place, folder: ({"encoder.name": "gridtransformer"}, 2, "grid_transformer"),
    "unknown fusion": lambda place, folder: ({"fusion.name": "crossattention"}, 2, "cross_attention"),
    "unknown option": lambda place, folder: ({"encoder.options": "{widht: 3}"}, 2, "'width'"),
    "option that does not fit": lambda place, folder: (
        {"encoder.options": "{width: 30, heads: 4}"},
        2,
        "width",
    ),
    "unknown kind": lambda place, folder: ({"facts.kinds": "[means]"}, 2, "means"),
    "history too long": lambda place, folder: ({"data.history": 19}, 2, "history"),
    "gap too long": lambda place, folder: ({"data.gap_hours": 9999}, 2, "gap"),
    "sites beyond the backbone": lambda place, folder: ({"fusion.sites": "[7]"}, 2, "7"),
}


@pytest.mark.parametrize("case", TRAIN_ERRORS)
def test_train_refusals(place, tmp_path, case):
    changes, code, words = TRAIN_ERRORS[case](place, tmp_path)
    before = sorted(tmp_path.iterdir())
    overrides = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    arguments = ["train", str(place / "run.yaml"), "--output", str(tmp_path / "run"), *overrides]
    assert words in _one_line_error(runner.invoke(app, arguments), code)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["data", "inspect", "{folder}/none.nc"], 1, id="data", marks=pytest.mark.slow),
        pytest.param(
            ["train", "{place}/run.yaml", "--set", "training.stepz=1", "--output", "{folder}/run"],
            2,
            id="usage",
        ),
        pytest.param(
            ["infer", "{place}/run/model", "--climate", "{folder}/none.nc", "--time", LAST],
            1,
            id="all libraries",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_as_a_process_of_its_own(place, tmp_path, arguments, code):
    """What a shell sees: one line on standard error in all, whatever libraries would like to add."""
    filled = [argument.format(place=place, folder=tmp_path) for argument in arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "CLIMAFUSE_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "climafuse", *filled],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


# ---- The real backbone ---------------------------------------------------------------------------------------


@pytest.mark.slow  # `.ci/run` trains and asks the real backbone, too
@pytest.mark.real
def test_the_real_backbone_trains_and_answers(tmp_path):
    try:
        find_backbone(DEFAULT_BACKBONE, fetch=False)
    except BackboneNotFoundError:
        pytest.skip("the default backbone has not been fetched")
    changes = {
        "data.train_windows": 4,
        "data.validation_windows": 2,
        "facts.questions_per_window": 2,
        "training.steps": 2,
        "training.windows_per_step": 2,
        "training.evaluation_interval": 2,
        "output.tensorboard": "false",
    }
    overrides = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    result = runner.invoke(app, ["train", "--output", str(tmp_path / "run"), "--json", *overrides])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["backbone"]["num_parameters"] == 134_515_008
    arguments = ["--climate", "era5", "--time", "2026-03-31T23:00", "--location", "Paris, FR", "--json"]
    result = runner.invoke(app, ["infer", str(tmp_path / "run" / "model"), *arguments])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["place"] == "Paris, FR"
    assert found["answer"]
    assert found["seconds"] < 60


def test_a_regional_file_is_described_inside_its_area(tmp_path):
    """Centers over the whole globe would nearly all lie outside Europe."""
    whole = open_climate(sample_path("era5"), variables=["t2m"])
    region = whole.sel(latitude=slice(35, 64), longitude=slice(0, 24)).isel(time=slice(0, 3)).load()
    for variable in region.variables.values():
        variable.encoding.clear()
    region.to_netcdf(tmp_path / "region.nc")
    pairs = tmp_path / "pairs.jsonl"
    arguments = ["data", "describe", str(tmp_path / "region.nc"), str(pairs), "--windows", "40"]
    result = runner.invoke(app, [*arguments, "--abstentions", "0", "--box-degrees", "10"])
    assert result.exit_code == 0, result.stderr
    boxes = [pair.place for pair in read_pairs(pairs)]
    assert len({(box.latitude, box.longitude) for box in boxes}) > 20
    # Cells are 1°, so the edges of the region lie half a degree beyond its outermost centers; no box is cut off.
    assert all(box.south >= 34.5 and box.north <= 64.5 for box in boxes)
    assert all(box.west >= -0.5 and box.east <= 24.5 for box in boxes)
    assert all((box.height, box.width) == (10, 10) for box in boxes)


def test_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("kept")
    below = str(tmp_path / "file" / "below")
    for arguments in (
        ["data", "describe", "era5", f"{below}.jsonl", "--windows", "2"],
        ["data", "prepare", "sst_anomaly", below],
        ["train", "--output", below],
        ["train", "--output", str(tmp_path / "file"), "--dry-run"],
    ):
        assert "file" in _one_line_error(runner.invoke(app, arguments), 1)
    assert (tmp_path / "file").read_text() == "kept"


_ASKED = ["--climate", "{fields}", *QUESTION]


@pytest.mark.parametrize("where", ["{folder}", "{folder}/file/x.{kind}", "{folder}/" + "x" * 250 + ".{kind}"])
@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("json", ["evaluate", "{run}", "--no-controls", "--json"]),
        ("html", ["report", "{run}", "-o"]),
        ("png", ["infer", "{run}", *_ASKED, "--map"]),
        ("png", ["attribute", "{run}", *_ASKED, "--map"]),
    ],
)
def test_output_that_cannot_be_written_is_refused_before_any_model_is_loaded(
    place, tmp_path, monkeypatch, where, kind, command
):
    def refuse(*_, **__):
        raise AssertionError("loaded for nothing")

    monkeypatch.setattr(ClimateTextForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr("climafuse.report.samples.make_cards", refuse)
    run = shutil.copytree(place / "run", tmp_path / "run")
    (folder := tmp_path / f"folder.{kind}").mkdir()
    (folder / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    named = {"run": run, "fields": place / "fields.nc", "folder": folder, "kind": kind}
    result = runner.invoke(app, [part.format(**named) for part in (*command, where)])
    assert str(folder) in _one_line_error(result, 1)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "{run}", "--no-controls", "--climate", "{fields}", "--json", "{fields}"],
        ["evaluate", "{run}", "--no-controls", "--pairs", "{pairs}", "--json", "{pairs}"],
        ["evaluate", "{run}", "--no-controls", "--json", "{backbone}/config.json"],
        ["report", "{run}", "--no-attribution", "-o", "{fields}"],
        ["report", "{run}", "--no-attribution", "-o", "{run}/run.json"],
        ["infer", "{run}", *_ASKED, "--map", "{picture}"],
        ["attribute", "{run}", *_ASKED, "--map", "{picture}"],
        ["data", "describe", "{fields}", "{run}/log.jsonl"],
    ],
)
def test_what_a_command_reads_is_not_written_over(place, tmp_path, monkeypatch, command):
    """Whatever names it: an option, the configuration of the run, or a file that only looks like a result."""

    def refuse(*_, **__):
        raise AssertionError("work was done for nothing")

    monkeypatch.setattr(ClimateTextForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr("climafuse.report.samples.make_cards", refuse)
    names = {"run": "run", "backbone": "backbone", "fields": "fields.nc"}
    for name in ("run", "backbone"):
        shutil.copytree(place / name, tmp_path / name)
    shutil.copy(place / "fields.nc", tmp_path)
    shutil.copy(place / "fields.nc", tmp_path / "picture.png")
    (tmp_path / "pairs.jsonl").write_text('{"time": "2026-03-09", "text": "Warm."}\n')
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    named = {key: tmp_path / name for key, name in names.items()}
    named |= {"pairs": tmp_path / "pairs.jsonl", "picture": tmp_path / "picture.png"}
    line = _one_line_error(runner.invoke(app, [part.format(**named) for part in command]), 2)
    assert "expected a file that is not there yet" in line
    assert command[-1].format(**named) in line
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("command", ["infer", pytest.param("attribute", marks=pytest.mark.slow)])
def test_a_run_stands_for_its_model(place, command):
    def told(folder):
        asked = [part.format(fields=place / "fields.nc") for part in _ASKED]
        result = runner.invoke(app, [command, str(folder), *asked, "--json"])
        assert result.exit_code == 0, result.output
        return {key: value for key, value in json.loads(result.stdout).items() if key != "seconds"}

    assert told(place / "run") == told(place / "run" / "model")


# ---- Attribution ---------------------------------------------------------------------------------------------


def _attribute(place, *arguments):
    return ["attribute", str(place / "run" / "model"), *map(str, arguments)]


def test_attribute_says_where_an_answer_comes_from(place, tmp_path):
    asked = ("--climate", place / "fields.nc", "--time", LAST, "--location", "48.9,2.3")
    prompt = "What is the mean temperature?"
    picture = tmp_path / "map.png"
    arguments = _attribute(place, *asked, "--prompt", prompt, "--map", picture, "--json")
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["prompt"] == prompt
    assert picture.stat().st_size > 10_000
    shape = len(found["latitude"]), len(found["longitude"])
    for row in found["facts"]:
        share, drop = row["attention"]["share"], row["occlusion"]["drop"]
        assert (len(share), len(share[0]), len(share[0][0])) == (2, *shape)
        assert (len(drop), len(drop[0])) == shape
        total = sum(sum(map(sum, step)) for step in share)
        assert total + row["attention"]["whole_box"] == pytest.approx(1, abs=1e-4)
        assert set(row["occlusion"]["by_variable"]) == {"t2m", "msl"}
        assert len(row["occlusion"]["by_time"]) == 2
        assert row["words"]
    told = runner.invoke(app, [*_attribute(place, *asked, "--prompt", prompt), "--fill", "missing"])
    assert told.exit_code == 0, told.output
    assert "lost without each variable: t2m" in told.stdout


def test_maps_of_further_facts_write_over_no_other_file(place, tmp_path, monkeypatch):
    """How many facts an answer has is known once it is given; its maps are drawn after that."""
    given = inference.answer
    two = "The temperature averages 8 °C. The temperature reaches 9 °C."
    monkeypatch.setattr(
        inference, "answer", lambda *args, **options: dataclasses.replace(given(*args, **options), text=two)
    )
    (tmp_path / "map-2.png").write_text("kept")
    asked = ("--climate", place / "fields.nc", "--time", LAST, "--location", "48.9,2.3")
    arguments = _attribute(place, *asked, "--prompt", "How warm is it?", "--map", tmp_path / "map.png")
    assert "map-2.png" in _one_line_error(runner.invoke(app, arguments), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["map-2.png"]
    assert (tmp_path / "map-2.png").read_text() == "kept"


@pytest.mark.parametrize(("asked_for", "right"), [("salinity", True), ("temperature", False)])
def test_attribute_and_infer_judge_an_abstention_alike(place, monkeypatch, asked_for, right):
    """What the fields do not hold is rightly said not to be given."""
    given = inference.answer

    def abstains(*args, **options):
        return dataclasses.replace(given(*args, **options), text="That is not given.")

    monkeypatch.setattr(inference, "answer", abstains)
    asked = ("--climate", place / "fields.nc", "--time", LAST, "--location", "48.9,2.3")
    result = runner.invoke(
        app, [*_attribute(place, *asked, "--prompt", f"What is the {asked_for}?"), "--json"]
    )
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["facts"]
    assert (row["said"], row["right"]) == ("absent", right)
    assert row["field"] == ("absent" if right else "given")


def test_attribute_counts_planted_signals(place, tmp_path):
    result = runner.invoke(app, _attribute(place, "--planted", 1, "--size", 4, "--json"))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["num_windows"] == 1
    signals = found["signals"]
    assert (
        signals["all"]["planted"] == sum(row["planted"] for name, row in signals.items() if name != "all") > 5
    )
    assert {name.split("/")[1].split()[0] for name in signals if name != "all"} == {"t2m", "msl"}
    # The fields of the run themselves, and those of other times: 30 days later, a gap away from all that was seen.
    later = tmp_path / "later.nc"
    with xr.open_dataset(place / "fields.nc") as fields:
        fields.assign_coords(time=fields["time"] + np.timedelta64(30, "D")).to_netcdf(later)
    for climate in (place / "fields.nc", later):
        table = runner.invoke(app, _attribute(place, "--planted", 1, "--climate", climate, "--seed", 1))
        assert table.exit_code == 0, table.output
        assert "planted signal" in table.stdout


def test_signals_are_planted_into_no_window_that_was_learned(place, tmp_path):
    """Fields whose test times are training times of the run. Oracle: the evaluation, which refuses them."""
    learned = tmp_path / "learned.nc"
    with xr.open_dataset(place / "fields.nc") as fields:
        fields.assign_coords(time=fields["time"] - np.timedelta64(5, "D")).to_netcdf(learned)
    planted = runner.invoke(app, _attribute(place, "--planted", 3, "--climate", learned))
    run = str(place / "run")
    evaluated = runner.invoke(app, ["evaluate", run, "--no-controls", "--climate", str(learned)])
    lines = [_one_line_error(result, 2) for result in (planted, evaluated)]
    assert len({line.partition("; received")[0] for line in lines}) == 1
    assert "hours from those of the run" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--climate", "fields.nc"], "--time, --prompt"),
        (["--planted", "2", "--prompt", "Why?"], "--prompt"),
        (["--climate", "era5", "--time", LAST, "--prompt", "Why?", "--map", "map.txt"], "map.txt"),
    ],
)
def test_attribute_refuses_in_one_line(place, arguments, named):
    assert named in _one_line_error(runner.invoke(app, _attribute(place, *arguments)), 2)
