"""`climafuse evaluate` on a model that has learned nothing, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import xarray as xr
import yaml
from typer.testing import CliRunner

from climafuse.cli.app import app
from climafuse.evaluation import asking, checkpoint
from climafuse.evaluation.checkpoint import evaluate_checkpoint
from climafuse.manifest import read_manifest, write_manifest
from climafuse.model.inference import Reader
from climafuse.training.config import RunConfig, read_dataclass
from climafuse.training.pipeline import run as train
from tests.training.runs import settings, write_climate

runner = CliRunner()


@pytest.fixture(scope="module")
def place(finished_run, tmp_path_factory):
    """A finished run of a few steps: too few to learn anything."""
    return Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("evaluate") / "place"))


def _evaluate(*arguments):
    return runner.invoke(app, ["evaluate", *map(str, arguments)])


def test_who_has_learned_nothing_is_not_grounded(place, tmp_path):
    result = _evaluate(place / "run", "--no-controls", "--json", tmp_path / "figures.json")
    assert result.exit_code == 3, result.output
    assert "verdict: NOT GROUNDED" in result.stdout
    for words in (
        "swapped field, scored against the original",
        "withheld",
        "abstains",
        "tendency",
        "no interval",
    ):
        assert words in result.stdout, words
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures == json.loads(
        (place / "run" / "evaluation" / "evaluation.json").read_text(encoding="utf-8")
    )
    assert not figures["verdict"]["grounded"]
    assert set(figures["fact_f1"]) >= {"true", "shuffled", "shown", "blank", "prior", "text_only", "oracle"}
    assert figures["fact_f1"]["oracle"] == 1.0
    assert figures["fact_f1"]["text_only"] is None
    assert figures["data"]["num_windows"] == 12
    assert figures["training"]["steps"] == 8
    # A tiny random language model over 300-odd tokens: no better than chance, but not worse than e times that.
    assert 1 < figures["conditions"]["true"]["token_loss"] < 10
    for name in ("shuffled", "shown", "blank", "mean_field"):
        assert figures["conditions"][name]["bits_per_byte"] > 0
    assert {sample["window"] for sample in figures["samples"]} <= set(range(12))


def test_a_card_that_cannot_be_written_takes_no_figures_away(place, tmp_path):
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    (run / "model" / "README.md").unlink()
    (run / "model" / "README.md").mkdir()
    result = _evaluate(run, "--no-controls", "--json", tmp_path / "figures.json")
    assert result.exit_code == 3, result.output
    assert "note: the model card" in result.stderr
    assert "verdict: " in result.stdout
    assert (tmp_path / "figures.json").read_text() == (run / "evaluation" / "evaluation.json").read_text()


def test_what_was_answered_is_not_asked_again(place, monkeypatch):
    first = _evaluate(place / "run" / "model", "--no-controls")
    assert first.exit_code == 3, first.output

    def refuse(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr(Reader, "answer", refuse)
    monkeypatch.setattr(Reader, "score", refuse)
    again = _evaluate(place / "run", "--no-controls")
    assert again.exit_code == 3, again.output
    assert again.stdout == first.stdout
    assert "going on from" in again.stderr


@pytest.mark.slow
def test_answers_of_another_length_are_asked_anew(place, tmp_path):
    """What was cut off after so many tokens tells nothing of longer answers."""
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    few = ("--no-controls", "--questions", 3)
    assert _evaluate(run, *few).exit_code == 3
    assert "going on from" in _evaluate(run, *few).stderr
    model = run / "model"
    settings_of_run = yaml.safe_load((model / "run.yaml").read_text(encoding="utf-8"))
    settings_of_run["evaluation"]["max_new_tokens"] += 1
    (model / "run.yaml").write_text(yaml.safe_dump(settings_of_run), encoding="utf-8")
    write_manifest(model, kind="model", details=read_manifest(model)["details"])
    longer = _evaluate(run, *few)
    assert longer.exit_code == 3, longer.output
    assert "going on from" not in longer.stderr


def test_controls_are_trained_once_and_counted(controlled_run, tmp_path):
    """Two were trained before, and one is."""
    run = tmp_path / "run"
    shutil.copytree(controlled_run, run)
    shutil.rmtree(run / "evaluation" / "controls" / "regressor")
    result = _evaluate(run)
    assert result.exit_code == 3, result.output
    assert result.stderr.count("trained before") == 2
    figures = json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert set(figures["controls"]) == {"text_only", "place_only", "regressor"}
    assert all(control["steps"] == 8 for control in figures["controls"].values())
    for name in figures["controls"]:
        assert 0 <= figures["fact_f1"][name] <= 1
        assert figures["conditions"][name]["num_questions"] == figures["conditions"]["true"]["num_questions"]
    again = _evaluate(run)
    assert again.stdout == result.stdout
    assert again.stderr.count("trained before") == 3


def test_other_fields_and_fewer_questions(place, tmp_path):
    other = write_climate(tmp_path / "other.nc", seed=5)
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    result = _evaluate(run, "--no-controls", "--climate", other, "--questions", 5)
    assert result.exit_code == 3, result.output
    figures = json.loads((run / "evaluation" / "other.json").read_text(encoding="utf-8"))
    assert figures["data"]["source"] == str(other)
    assert len(figures["samples"]) <= 5
    assert figures["data"]["num_windows"] == 5
    assert figures["data"]["num_test_times"] <= figures["data"]["num_windows"]


def test_one_that_is_told_to_end_says_so_and_goes_on(place, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    answer, calls = Reader.answer, []

    def told_to_end(self, windows, prompts, **options):
        calls.append(len(prompts))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(self, windows, prompts, **options)

    monkeypatch.setattr(asking, "_PORTION", 8)
    monkeypatch.setattr(Reader, "answer", told_to_end)
    before = signal.getsignal(signal.SIGTERM)
    result = _evaluate(run, "--no-controls", "--questions", 6)
    assert result.exit_code == 75, result.output
    assert "interrupted: SIGTERM" in result.stderr
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(Reader, "answer", answer)
    again = _evaluate(run, "--no-controls", "--questions", 6)
    assert again.exit_code == 3
    assert "going on from 16 of" in again.stderr


def test_lesser_evaluations_replace_no_others(place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    assert _evaluate(run, "--no-controls").exit_code == 3
    record, card = run / "evaluation" / "evaluation.json", run / "model" / "README.md"
    kept = {path: path.read_bytes() for path in (record, card, *(run / "evaluation").glob("*.jsonl"))}
    assert len(kept) == 3
    (checkpoint,) = sorted(run.glob("checkpoint-*"))[:1]
    assert _evaluate(run, "--no-controls", "--questions", 3).exit_code == 3
    assert _evaluate(checkpoint, "--no-controls").exit_code == 3
    for path, content in kept.items():
        assert path.read_bytes().startswith(content), path  # what was asked besides is put after it
    assert record.read_bytes() == kept[record]
    other = json.loads((run / "evaluation" / "other.json").read_text(encoding="utf-8"))
    assert other["training"]["steps"] == int(checkpoint.name.partition("-")[2])


@pytest.mark.slow
def test_answers_of_another_version_are_left_and_not_used(place, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    shutil.rmtree(run / "evaluation", ignore_errors=True)
    first = _evaluate(run, "--no-controls", "--questions", 3)
    assert "not used" not in first.stderr
    (kept,) = (run / "evaluation").glob("*.jsonl")
    before = kept.read_bytes()
    usual = checkpoint.versions
    monkeypatch.setattr(checkpoint, "versions", lambda names: usual(names) | {"torch": "9.9"})
    result = _evaluate(run, "--no-controls", "--questions", 3)
    assert result.exit_code == 3, result.output
    (note,) = (line for line in result.stderr.splitlines() if "not used" in line)
    assert kept.name in note
    assert f"torch {usual(['torch'])['torch']}, now 9.9" in note
    assert kept.read_bytes() == before
    assert len(list((run / "evaluation").glob("*.jsonl"))) == 2


def test_times_of_training_are_not_asked_about_in_other_files(place, tmp_path):
    """The same fields, cut so that their last times, which would be for testing, are those of training."""
    with xr.open_dataset(place / "fields.nc") as fields:
        fields.load()
    splits = json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))["splits"]
    seen = fields.sel(time=slice(None, splits["validation"][1]))
    early = seen.assign_coords(time=seen["time"] - (seen["time"][-1] - fields["time"][0]))
    both = xr.concat([early.isel(time=slice(None, -1)), seen], "time")
    both.to_netcdf(tmp_path / "seen.nc")
    result = _evaluate(place / "run", "--no-controls", "--climate", tmp_path / "seen.nc")
    assert result.exit_code == 2, result.output
    assert "none of them such" in result.stderr
    assert splits["train"][0] in result.stderr


def test_pairs_need_neither_training_times_nor_facts(place, tmp_path):
    """Two questions in our wording about test times, one of them without facts."""
    figures = json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))
    time = figures["splits"]["test"][1]
    rows = [
        {"time": time, "prompt": "What is the mean temperature?", "text": "Mean temperature: 3 °C."},
        {"time": time, "prompt": "Write a poem.", "text": "Roses are red."},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = _evaluate(place / "run", "--no-controls", "--pairs", path)
    assert result.exit_code == 3, result.output
    assert "texts that ask for no single fact are not asked: 1" in result.stderr
    other = json.loads((place / "run" / "evaluation" / "other.json").read_text(encoding="utf-8"))
    assert other["data"]["num_questions"] == 1


@pytest.mark.slow
def test_anomalies_against_other_times_are_not_what_a_model_was_trained_on(place, tmp_path):
    with xr.open_dataset(place / "fields.nc") as fields:
        anomalies = (fields[["t2m"]] - 283).rename(t2m="sst_anomaly")
        anomalies["sst_anomaly"].attrs["units"] = "K"
        anomalies.to_netcdf(tmp_path / "anomalies.nc")
    command = [
        "data",
        "prepare",
        str(tmp_path / "anomalies.nc"),
        str(tmp_path / "store"),
        "--anomalies",
        "all",
    ]
    assert runner.invoke(app, command).exit_code == 0
    content = settings(tmp_path / "store", place / "backbone", tmp_path / "run")
    content["data"] |= {"variables": ["sst_anomaly"], "test_windows": 3}
    content["facts"]["kinds"] = ["anomaly", "anomaly_class"]
    content["training"] |= {"steps": 2, "evaluation_interval": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    result = runner.invoke(app, ["train", str(tmp_path / "run.yaml")])
    assert result.exit_code == 0, result.output
    result = _evaluate(tmp_path / "run", "--no-controls", "--climate", tmp_path / "anomalies.nc")
    assert result.exit_code == 2
    assert (
        "expected anomalies against the training times, by all, as the model was trained on" in result.stderr
    )
    assert "anomalies as the files give them" in result.stderr
    assert _evaluate(tmp_path / "run", "--no-controls").exit_code == 3


@pytest.mark.parametrize("name", ["evaluation/evaluation.json", "run.json", "model/config.json", "log.jsonl"])
def test_figures_are_not_written_over_what_a_run_keeps(place, tmp_path, monkeypatch, name):
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / "evaluation.json").write_text("{}")
    before = (run / name).read_bytes()

    def refuse(*_, **__):
        raise AssertionError("work was done for nothing")

    monkeypatch.setattr("climafuse.evaluation.checkpoint.evaluate_checkpoint", refuse)
    result = _evaluate(run, "--no-controls", "--questions", 3, "--json", run / name)
    assert result.exit_code == 2, result.output
    assert "--json: expected a file that is not there yet, or figures" in result.stderr
    assert result.stderr.count("\n") == 1
    assert (run / name).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nowhere",), 1, "nowhere"),
        (("run", "--climate", "nowhere.nc"), 1, "nowhere.nc"),
        (("run", "--questions", "0"), 2, "--questions"),
    ],
)
def test_a_mistake_is_one_line(place, monkeypatch, arguments, code, words):
    monkeypatch.chdir(place)
    result = _evaluate(*arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    if code == 1:
        assert result.stderr.count("\n") == 1


def test_few_windows_tell_nothing_even_of_who_has_learned_nothing(place):
    result = _evaluate(place / "run", "--no-controls", "--questions", 9)
    assert result.exit_code == 3, result.output
    assert "verdict: CANNOT BE TOLD: TOO FEW SAMPLES" in result.stdout
    assert "FAILS" not in result.stdout
    other = json.loads((place / "run" / "evaluation" / "other.json").read_text(encoding="utf-8"))
    assert other["data"]["num_windows"] == 9


# ---- Data that changed or moved


@pytest.fixture(scope="module")
def trained(finished_run, tmp_path_factory):
    """A folder with fields.nc and a run on it."""
    folder = tmp_path_factory.mktemp("trained")
    content = settings(write_climate(folder / "fields.nc"), finished_run / "backbone", folder / "run")
    content["data"]["test_windows"] = 12
    train(read_dataclass(RunConfig, content), say=lambda line: None)
    return folder


@pytest.fixture
def own(trained, tmp_path):
    """(a copy of the run, the fields it was trained on), which are as they were afterwards."""
    fields = trained / "fields.nc"
    kept = fields.read_bytes()
    yield Path(shutil.copytree(trained / "run", tmp_path / "run")), fields
    fields.write_bytes(kept)


def _change(path, change):
    with xr.open_dataset(path) as opened:
        fields = opened.load()
    change(fields).to_netcdf(path)


def _kept(run):
    return {path.name for path in (run / "evaluation").glob("*.json")}


def _record(run, name):
    return json.loads((run / "evaluation" / name).read_text(encoding="utf-8"))


def _knows_what_it_has_seen(result):
    """Of a file that was cut to times of training and validation, none is asked about."""
    assert result.exit_code == 2, result.output
    assert (
        "not those of the run, whose train times were others: 2026-03-01T00:00 to 2026-03-06" in result.stderr
    )
    assert "none of them such" in result.stderr


def _prolonged(fields):
    """The same fields, and the same again ten days later: 40 half days, the last of them for testing."""
    later = fields.assign_coords(time=fields["time"] + (fields["time"][-1] - fields["time"][0]))
    return xr.concat([fields.isel(time=slice(None, -1)), later], "time")


@pytest.mark.slow
def test_a_file_cut_short_is_not_asked_about_times_that_the_best_step_was_chosen_by(own):
    run, fields = own
    _change(fields, lambda before: before.isel(time=slice(None, 15)))
    result = _evaluate(run, "--no-controls")
    _knows_what_it_has_seen(result)
    assert _kept(run) == set()


def test_a_file_that_has_grown_is_other_data_and_asked_about_unseen_times_only(own):
    run, fields = own
    _change(fields, _prolonged)
    result = _evaluate(run, "--no-controls")
    assert result.exit_code == 3, result.output
    assert "now 2026-03-01T00:00 to" in result.stderr
    assert _kept(run) == {"other.json"}
    seen = json.loads((run / "run.json").read_text(encoding="utf-8"))["splits"]["validation"][1]
    assert all(sample["time"] > seen for sample in _record(run, "other.json")["samples"])
    with_controls = _evaluate(run)
    assert with_controls.exit_code == 1
    assert "was trained on" in with_controls.stderr
    assert "without controls" in with_controls.stderr


def test_other_values_at_the_same_times_are_other_data(own):
    run, fields = own
    write_climate(fields, seed=5)
    result = _evaluate(run, "--no-controls")
    assert result.exit_code == 3, result.output
    assert "not those of the run, which held others at test times" in result.stderr
    assert _kept(run) == {"other.json"}


@pytest.mark.slow
def test_the_same_data_elsewhere_are_those_of_the_run_and_its_controls_are_trained_on_them(own, tmp_path):
    run, fields = own
    assert _evaluate(run, "--no-controls").exit_code == 3
    before = _record(run, "evaluation.json")
    shutil.rmtree(run / "evaluation")
    moved = tmp_path / "moved.nc"
    shutil.move(fields, moved)

    lost = _evaluate(run, "--no-controls")
    assert lost.exit_code == 1
    assert f"{fields}: expected" in lost.stderr
    assert "give them with --climate" in lost.stderr

    told: list[str] = []
    found = evaluate_checkpoint(run, climate=str(moved), controls=("regressor",), say=told.append)
    assert not [line for line in told if "not those of the run" in line]
    assert _kept(run) == {"evaluation.json"}
    assert found.record["controls"]["regressor"]["steps"] == 8
    assert found.record["data"] == {**before["data"], "source": str(moved)}
    assert found.record["fact_f1"] == {
        **before["fact_f1"], "regressor": found.record["fact_f1"]["regressor"]
    }  # fmt: skip
    again = evaluate_checkpoint(run, climate=str(moved), controls=("regressor",), say=told.append)
    assert again.record["fact_f1"] == found.record["fact_f1"]
    assert any("trained before" in line for line in told)


def test_controls_of_data_that_are_gone_are_not_trained_on_others(own, tmp_path):
    run, fields = own
    other = write_climate(tmp_path / "other.nc", seed=5)
    fields.unlink()
    assert _evaluate(run, "--no-controls", "--climate", other).exit_code == 3
    result = _evaluate(run, "--climate", other)
    assert result.exit_code == 1
    assert f"{fields}: expected" in result.stderr
    assert "use --no-controls" in result.stderr


def _as_of_an_earlier_version(model):
    """Without `data.json`."""
    manifest = read_manifest(model)
    (model / "data.json").unlink()
    write_manifest(model, kind=manifest["kind"], details=manifest["details"])


def _interrupted(run, place):
    """The checkpoint of a run that was killed."""
    shutil.rmtree(run / "model")
    (run / "run.json").unlink()
    return run / "checkpoint-8"


def _copied(run, place):
    return Path(shutil.copytree(run / "model", place / "copied"))


def _of_an_earlier_version(run, place):
    _as_of_an_earlier_version(run / "model")
    return run


@pytest.mark.parametrize("kept", [_interrupted, _copied, _of_an_earlier_version])
def test_a_model_knows_its_training_times_wherever_it_is(own, tmp_path, kept):
    run, fields = own
    model = kept(run, tmp_path)
    _change(fields, lambda before: before.isel(time=slice(None, 11)))
    result = _evaluate(model, "--no-controls")
    _knows_what_it_has_seen(result)


def test_where_nothing_tells_what_was_in_training_nothing_is_claimed(own):
    """A run of an earlier version that did not end, or somebody else's model: the file may have been a longer one."""
    run, fields = own
    _as_of_an_earlier_version(run / "model")
    (run / "run.json").unlink()
    _change(fields, lambda before: before.isel(time=slice(None, 11)))  # the last of these was in training
    result = _evaluate(run, "--no-controls")
    assert result.exit_code == 3, result.output
    assert "it is not known whether these times were in training" in result.stderr
    assert _kept(run) == {"other.json"}
    data = _record(run, "other.json")["data"]
    assert data["unseen"] is None
    assert set(data["splits"]) == {"test"}
    assert "grounding" not in (run / "model" / "README.md").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("command", [("evaluate", "--no-controls"), ("attribute", "--planted", "2")])
def test_weights_that_no_run_has_saved_are_refused_before_anything_is_asked(own, monkeypatch, command):
    """Somebody's own, beside those of the run, which tells nothing of them."""
    run, _ = own
    tuned = Path(shutil.copytree(run / "model", run / "tuned"))
    (tuned / "manifest.json").unlink()
    (tuned / "data.json").unlink()
    monkeypatch.setattr(Reader, "answer", lambda *_, **__: pytest.fail("asked for nothing"))
    before = sorted(run.rglob("*"))
    name, *options = command
    result = runner.invoke(app, [name, str(tuned), *options])
    assert result.exit_code == 1, result.output
    assert f"{tuned / 'manifest.json'}: expected a manifest" in result.stderr
    assert sorted(run.rglob("*")) == before


def test_what_is_not_of_the_run_says_why(own):
    run, _ = own
    assert _evaluate(run / "checkpoint-8", "--no-controls", "--questions", 4).exit_code == 3
    few, other = _record(run, "other.json")["data"]["apart"]
    assert few.startswith("4 of ")
    assert other == "not the model of the run"
    assert _evaluate(run, "--no-controls").exit_code == 3
    assert _record(run, "evaluation.json")["data"]["apart"] == []


def test_who_knows_says_so(own):
    run, _ = own
    assert _evaluate(run, "--no-controls").exit_code == 3
    data = _record(run, "evaluation.json")["data"]
    assert data["unseen"] is True
    assert set(data["splits"]) == {"train", "validation", "test"}
    assert "times that were not in training" in (run / "model" / "README.md").read_text(encoding="utf-8")
    found = evaluate_checkpoint(run, split="validation", controls=(), thorough=False, say=lambda line: None)
    assert found.record["data"]["unseen"] is False


def test_a_damaged_record_of_a_run_is_named(own):
    run, _ = own
    _as_of_an_earlier_version(run / "model")
    (run / "run.json").write_text('{"splits": 3}')
    result = _evaluate(run, "--no-controls")
    assert result.exit_code == 1, result.output
    assert f"{run / 'run.json'}: expected" in result.stderr
    assert "3 for splits" in result.stderr


def test_what_a_run_does_not_tell_of_is_its_own_only_where_it_was(own, tmp_path):
    """A run of an earlier version."""
    run, fields = own
    _as_of_an_earlier_version(run / "model")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    del record["identity"]
    (run / "run.json").write_text(json.dumps(record))
    copied = shutil.copy(fields, tmp_path / "copied.nc")
    assert _evaluate(run, "--no-controls", "--climate", copied).exit_code == 3
    assert _kept(run) == {"other.json"}
    assert _evaluate(run, "--no-controls").exit_code == 3
    assert _kept(run) == {"other.json", "evaluation.json"}
