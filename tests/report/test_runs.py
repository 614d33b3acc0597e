"""What a run left: read as it is, refused where it is none, and told where it is out of date."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from climafuse.cli.app import app
from climafuse.errors import CheckpointError
from climafuse.manifest import read_manifest, verify_folder, write_manifest
from climafuse.model.folder import check_folder
from climafuse.report.html import write_report
from climafuse.report.runs import EVALUATION_FILE, OTHER_FILE, read_run
from climafuse.report.samples import make_cards
from climafuse.training.dataset import make_examples, open_store
from climafuse.training.pipeline import run as train
from tests.report.pages import Page, evaluation, sample
from tests.training.runs import make_config, save_backbone, write_climate


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny finished run."""
    folder = tmp_path_factory.mktemp("trained")
    climate, backbone = write_climate(folder / "fields.nc"), save_backbone(folder / "backbone")
    train(make_config(climate, backbone, folder / "run"), say=lambda line: None)
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to be evaluated, damaged and moved."""
    return shutil.copytree(trained, tmp_path / "moved" / "run")


def measured(run, **changes):
    """An evaluation of constructed figures about windows of the run's own fields."""
    from climafuse.data.times import format_time
    from climafuse.facts import extract, window_box

    config = read_run(run).settings
    example = make_examples(open_store(config), "test", config)[0]
    box, truth = window_box(example.window), extract(example.window, kinds=["mean/t2m"])[0]
    found = evaluation(
        samples=[
            sample(0)
            | {
                "time": format_time(example.window.time[-1]),
                "box": {"south": box.south, "north": box.north, "west": box.west, "east": box.east},
                "prompt": "What is the mean temperature?",
                "truth": truth.to_dict(),
            }
        ],
        **changes,
    )
    found["data"]["source"] = config.data.source
    (run / EVALUATION_FILE).parent.mkdir(exist_ok=True)
    (run / EVALUATION_FILE).write_text(json.dumps(found))
    return found


def test_a_finished_run_is_read_whole(trained):
    found = read_run(trained)
    assert found.finished
    assert found.config["variables"] == ["t2m", "msl"]
    assert found.settings.training.steps == 8
    assert found.record["train"]["windows"] == 12
    assert {"step", "loss", "eval_loss", "eval_train_loss"} <= {key for line in found.log for key in line}
    assert any(key.startswith("gate/") for line in found.log for key in line)
    assert found.evaluation == {}
    assert not found.stale


def test_while_a_run_goes_on_its_newest_checkpoint_stands_in(run):
    shutil.rmtree(run / "model")
    (run / "run.json").unlink()
    found = read_run(run)
    assert found.model.name == "checkpoint-8"
    assert not found.finished
    assert found.record == {}


def test_a_report_of_a_run_that_was_not_evaluated(run):
    found = read_run(run)
    page = Page(write_report(found, run / "report.html").read_text(encoding="utf-8"))
    assert page.mistakes == []
    assert "Not measured" in page.words
    assert "Gap at the end" in page.words
    assert "what it is pretrained" in page.words


@pytest.mark.parametrize(
    "state", ["", "nothing tells what it was trained on", "the run has not saved its model yet"]
)
def test_figures_that_are_kept_apart_are_told_of(run, state):
    """Oracle: what the file says. Where an evaluation cannot be that of the run, none is recommended."""
    from typer.testing import CliRunner

    def reported():
        result = CliRunner().invoke(app, ["report", str(run), "--no-attribution"])
        assert result.exit_code == 0, result.output
        (note,) = [line for line in result.stderr.splitlines() if "nothing of this run was measured" in line]
        return note, Page((run / "report.html").read_text(encoding="utf-8")).words

    if "trained on" in state:
        manifest = read_manifest(run / "model")
        (run / "model" / "data.json").unlink()
        (run / "run.json").unlink()
        write_manifest(run / "model", kind=manifest["kind"], details=manifest["details"])
    elif state:
        shutil.rmtree(run / "model")
    note, page = reported()
    assert "other.json" not in note + page
    for words in (note, page):
        assert state in words
        assert ("kept apart" in words) == bool(state)
    assert ("climafuse evaluate" in note) == (not state)

    found = evaluation(checkpoint="runs/mine/checkpoint-4")
    found["data"] |= {"source": "winter.nc", "apart": ["400 of 546 questions", "not the model of the run"]}
    (run / OTHER_FILE).parent.mkdir()
    (run / OTHER_FILE).write_text(json.dumps(found))
    for words in reported():
        assert "evaluation/other.json holds figures of 546 questions about winter.nc" in words
        assert "asked of runs/mine/checkpoint-4" in words
        assert "400 of 546 questions; not the model of the run." in words
    measured(run)
    assert read_run(run).apart == ""


@pytest.mark.parametrize(
    "content", [{}, {"data": 3}, {"data": {"apart": 3, "source": None}, "checkpoint": []}]
)
def test_figures_that_are_kept_apart_may_be_of_any_version(run, content):
    (run / OTHER_FILE).parent.mkdir()
    (run / OTHER_FILE).write_text(json.dumps(content | {"format": 1}))
    assert "unknown fields, asked of an unknown model" in read_run(run).apart


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("nowhere", "no such folder"),
        ("run/tensorboard", "another folder"),
        ("run/checkpoint-8", "the folder of a model"),
    ],
)
def test_what_is_no_run_is_refused(run, folder, words):
    (run / "tensorboard").mkdir(exist_ok=True)
    with pytest.raises(CheckpointError, match=words) as refused:
        read_run(run.parent / folder)
    assert "train" in refused.value.remedy or "Give" in refused.value.remedy


def test_the_model_stands_for_its_run(run):
    measured(run)
    assert read_run(run / "model") == read_run(run)


def test_a_card_that_cannot_be_written_is_a_note(run):
    """Nobody, not even root, writes a file where a folder is."""
    from typer.testing import CliRunner

    measured(run)
    card = run / "model" / "README.md"
    card.unlink()
    card.mkdir()
    page = run.parent / "elsewhere.html"
    result = CliRunner().invoke(app, ["report", str(run), "-o", str(page), "--no-attribution"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{page}\n"
    (note,) = [line for line in result.stderr.splitlines() if str(card) in line]
    assert note.startswith("note: ")
    assert "Grounded" in Page(page.read_text(encoding="utf-8")).words
    assert card.is_dir()
    assert not list(run.rglob("*.tmp"))


def test_a_damaged_model_is_refused(run):
    path = run / "model" / "config.json"
    path.write_text(path.read_text().replace("t2m", "t9m"))
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_run(run)


@pytest.mark.parametrize(
    ("content", "words"), [("{", "a JSON object"), ("[1]", "no object"), ('{"format": 7}', "format 7")]
)
def test_a_damaged_evaluation_is_refused(run, content, words):
    (run / "evaluation").mkdir()
    (run / EVALUATION_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        read_run(run)


def test_an_evaluation_of_other_weights_is_stale(run):
    weights = read_run(run).config["weights_sha256"]
    measured(run, weights_sha256=weights)
    assert not read_run(run).stale
    measured(run, weights_sha256="0" * 64)
    assert read_run(run).stale
    measured(run)  # without a hash, by time
    assert not read_run(run).stale
    os.utime(run / EVALUATION_FILE, (1, 1))
    assert read_run(run).stale


def test_the_command_writes_report_and_card_and_the_model_still_verifies(run):
    from typer.testing import CliRunner

    measured(run)
    result = CliRunner().invoke(app, ["report", str(run), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["report"] == str(run / "report.html")
    assert said["bytes"] == (run / "report.html").stat().st_size < 5_000_000
    assert (said["evaluated"], said["stale"], said["samples"], said["notes"]) == (True, False, 1, [])
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.mistakes == []
    assert page.words.index("Grounded") < 200
    assert [image["src"][:23] for image in page.all("img")] == ["data:image/webp;base64,"] * len(
        page.all("img")
    )
    assert len(page.all("img")) >= 2  # the field, and where the words looked

    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert card.count("## Do the words come from the fields?") == 1
    assert "| 0.921 | 0.891 to 0.951 |" in card
    verify_folder(run / "model")
    check_folder(run / "model")

    again = CliRunner().invoke(
        app, ["report", str(run), "-o", str(run / "deep" / "r.html"), "--no-attribution"]
    )
    assert again.exit_code == 0, again.output
    assert again.stdout.strip().endswith("r.html")
    assert len(Page((run / "deep" / "r.html").read_text(encoding="utf-8")).all("img")) == 1
    assert (run / "model" / "README.md").read_text(encoding="utf-8") == card


def test_a_stale_evaluation_stays_out_of_the_card(run):
    from typer.testing import CliRunner

    measured(run, weights_sha256="0" * 64)
    before = (run / "model" / "README.md").read_text(encoding="utf-8")
    result = CliRunner().invoke(app, ["report", str(run)])
    assert result.exit_code == 0, result.output
    assert "of other weights" in result.output
    assert (run / "model" / "README.md").read_text(encoding="utf-8") == before
    assert "Out of date" in Page((run / "report.html").read_text(encoding="utf-8")).words
    _, notes = make_cards(read_run(run))
    assert any("another model was evaluated" in note for note in notes)


def test_a_mistake_is_one_line(tmp_path):
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
