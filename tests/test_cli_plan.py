"""`climafuse plan`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from climafuse.cli.app import app
from climafuse.planning import planner
from climafuse.planning.planner import CUDA_CONTEXT
from tests.planning.tiny_workload import counted
from tests.training.runs import save_backbone, settings, write_climate

runner = CliRunner()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture
def shape(backbone, monkeypatch):
    monkeypatch.setattr(planner, "measure", counted)
    small = [
        "--set",
        "fusion.options={heads: 2, feed_forward: 16}",
        "--set",
        "encoder.options={width: 16, depth: 1, heads: 2}",
        "--sites",
        "[2]",
        "--batch",
        "2",
        "--length",
        "9",
    ]
    return ["plan", "--backbone", str(backbone), *small]


def test_a_plan_as_json_and_as_tables(shape):
    result = runner.invoke(app, [*shape, "--no-time", "--memory", "36GB", "--quantization", "int8", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["fits"]
    assert found["device"]["memory"] == 36 * 10**9
    assert (found["microbatch"], found["length"]) == (2, 9)
    assert found["footprint"]["sites"] == ["2"]
    assert found["largest_length"] == 256
    assert found["pace"] is None
    tables = runner.invoke(app, [*shape, "--device", "A100-40"])
    assert tables.exit_code == 0, tables.output
    assert "estimated from its data sheet" in tables.stdout
    assert "frozen without gradient" in tables.stdout


def test_of_several_processes_each_holds_its_part(shape):
    """Of 2.2 MB of weights, 0.2 of gradients and 0.4 of moments a quarter; 0.3 are gathered, two windows take 0.018."""
    options = [*shape, "--no-time", "--device", "A100-40", "--json"]
    result = runner.invoke(app, [*options, "--processes", "4", "--spread", "weights"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["processes"], found["microbatch"]) == (4, 2)
    stored = 64 * 9 * (4000 + 128)  # states of all texts of the configuration, in each process
    held = 550_000 + 300_000 + 50_000 + 100_000 + 18_000 + stored
    assert found["phases"]["training"] == CUDA_CONTEXT + held
    assert found["share"] == {
        "weights": 850_000,
        "gradients": 50_000,
        "gradients_always": 0,
        "moments": 100_000,
    }
    alone = json.loads(runner.invoke(app, options).stdout)
    assert alone["phases"]["training"] == CUDA_CONTEXT + 2_200_000 + 600_000 + 18_000 + stored
    tables = runner.invoke(app, [*options[:-1], "--processes", "4"])
    assert "4 processes, each of 1 × 2 windows" in tables.stdout
    assert "weights in each process" in tables.stdout


def test_processes_of_one_machine_share_its_memory(shape):
    options = [*shape, "--no-time", "--memory", "36GB", "--json"]
    found = json.loads(runner.invoke(app, [*options, "--processes", "4"]).stdout)
    assert found["device"]["memory"] == 9 * 10**9


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--processes", "2", "--spread", "layers"], "moments or gradients or weights"),
        (["--spread", "weights"], "several processes"),
        (["--processes", "5", "--set", "training.accumulation=4"], "a multiple of accumulation"),
        (["--processes", "2", "--spread", "weights"], "Name a GPU"),
    ],
)
def test_processes_that_cannot_be_are_refused(shape, options, word):
    batch = shape.index("--batch")
    shape = shape if "--set" not in options else shape[:batch] + shape[batch + 2 :]
    result = runner.invoke(app, [*shape, "--no-time", *options])
    assert result.exit_code == 2
    assert word in result.stderr.replace("\n", " ")


@pytest.mark.parametrize("spread", ["weights", "moments"])
def test_what_the_trainer_would_refuse_is_not_planned(shape, spread):
    """Trained weights in bfloat16, the default, that are spread; DDP trains them, and no process spreads them alone."""
    trained = [*shape, "--no-time", "--device", "H100", "--set", "backbone.trainable=all"]
    several = ["--processes", "2", "--spread", spread]
    result = runner.invoke(app, [*trained, *several])
    assert result.exit_code == 1
    assert "backbone.dtype: expected float32" in result.stderr
    for options in (["--processes", "2"], [*several, "--set", "backbone.dtype=float32"]):
        assert runner.invoke(app, [*trained, *options]).exit_code == 0


def test_what_does_not_fit_ends_with_one_and_is_told_what_to_change(shape):
    result = runner.invoke(app, [*shape, "--no-time", "--memory", "500MB"])
    assert result.exit_code == 1
    assert "it does not fit" in result.stdout
    assert "GB of 0.50 GB. Process and libraries alone take" in result.stdout


def test_an_architecture_by_name_says_that_it_knows_nothing(shape):
    result = runner.invoke(app, ["plan", "--backbone", "nonsense-7b", "--length", "9"])
    assert result.exit_code == 1
    assert "llama-3-8b" in result.stderr


def test_what_is_assumed_without_data_is_said(shape):
    told = runner.invoke(app, [*shape, "--no-time", "--memory", "36GB"]).stdout
    assert "No data were opened: texts of 9 tokens" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [([], "it fits"), (["--batch", "3"], "1 × 3 windows"), (["--length", "9"], "No data")],
)
def test_data_of_a_configuration_are_opened_unless_lengths_are_given(
    options, told, backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(planner, "measure", counted)
    monkeypatch.setattr(planner, "largest_microbatch", lambda *_: 1)
    monkeypatch.setattr(planner, "largest_length", lambda *_: 1)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings(write_climate(tmp_path / "fields.nc"), backbone, tmp_path / "run")))
    result = runner.invoke(app, ["plan", str(path), "--no-time", "--memory", "36GB", *options])
    assert result.exit_code == 0, result.output
    assert told in result.stdout
    assert ("No data were opened" in result.stdout) == ("--length" in options)


@pytest.mark.parametrize("options", [["--length", "9" * 20], ["--batch", "9" * 20], ["--backbone", ""]])
def test_numbers_and_names_out_of_range_are_refused(shape, options):
    result = runner.invoke(app, [*shape, *options])
    assert result.exit_code == 2
    assert not isinstance(result.exception, OverflowError)


@pytest.mark.slow
def test_of_a_configuration_the_data_tell_how_long_texts_are(backbone, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings(write_climate(tmp_path / "fields.nc"), backbone, tmp_path / "run")))
    result = runner.invoke(app, ["plan", str(path), "--no-time", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["microbatch"], found["accumulation"]) == (2, 2)
    assert found["length"] > 20
    assert set(found["phases"]) > {"training", "evaluation", "storing states", "choosing the vocabulary"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("llama-3-8b", 8_030_261_248), ("gpt2-large", 774_030_080), ("opt-30b", 29_974_540_288)],
)
def test_architectures_of_billions_are_planned_without_memory(name, count):
    result = runner.invoke(
        app, ["plan", "--backbone", name, "--batch", "1", "--sites", "input", "--no-time", "--json"]
    )
    found = json.loads(result.stdout)
    assert found["footprint"]["frozen"] == count
    assert found["random_weights"]
