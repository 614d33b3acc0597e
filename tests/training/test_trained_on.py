"""What a model was trained on travels with it. Oracle: records made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from climafuse.errors import CheckpointError
from climafuse.training.trained_on import DATA_FILE, RECORD_FILE, TrainedOn, read_trained_on

TOLD = TrainedOn(
    splits={"train": ("2026-03-01T00:00", "2026-03-06T00:00"), "test": ("2026-03-09", "2026-03-10T12:00")},
    identity={"the fields": "ab", "the texts": "cd"},
    contents={"test": "ef"},
)
AS_WRITTEN = {
    "splits": {
        "train": ["2026-03-01T00:00", "2026-03-06T00:00"],
        "test": ["2026-03-09", "2026-03-10T12:00"],
    },
    "identity": {"the fields": "ab", "the texts": "cd", "splits": {"test": "ef"}},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_it_comes_back(model: Path) -> None:
    TOLD.write(model)
    assert json.loads((model / DATA_FILE).read_text()) == AS_WRITTEN
    assert read_trained_on(model) == TOLD
    assert TOLD.seen == [("2026-03-01T00:00", "2026-03-06T00:00")]


def test_a_run_of_an_earlier_version_tells_beside_its_model(model: Path) -> None:
    (model.parent / RECORD_FILE).write_text(json.dumps({**AS_WRITTEN, "steps": 8}))
    assert read_trained_on(model) == TOLD


def test_what_lies_with_the_weights_holds_wherever_they_are_copied(model: Path) -> None:
    TOLD.write(model)
    other = {"splits": {"train": ["1990-01-01", "1990-12-31"]}, "identity": {"the fields": "00"}}
    (model.parent / RECORD_FILE).write_text(json.dumps(other))  # of another run
    assert read_trained_on(model) == TOLD


@pytest.mark.parametrize(
    ("name", "is_of_run"), [("checkpoint-8", True), ("tuned", False), ("model-2", False)]
)
def test_a_run_tells_of_what_it_has_saved_and_of_no_other_weights(
    tmp_path: Path, name: str, is_of_run: bool
) -> None:
    (tmp_path / RECORD_FILE).write_text(json.dumps(AS_WRITTEN))
    (tmp_path / name).mkdir()
    assert read_trained_on(tmp_path / name) == (TOLD if is_of_run else TrainedOn())


def test_a_folder_is_known_by_its_own_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model.parent / RECORD_FILE).write_text(json.dumps(AS_WRITTEN))
    (elsewhere := model.parent / "elsewhere").mkdir()
    (elsewhere / "newest").symlink_to(model)
    assert read_trained_on(elsewhere / "newest") == TOLD
    monkeypatch.chdir(model)
    assert read_trained_on(Path()) == TOLD


def test_where_nothing_tells_nothing_is_known(model: Path) -> None:
    assert read_trained_on(model) == TrainedOn()
    assert read_trained_on(model).seen == []
    (model.parent / RECORD_FILE).write_text('{"steps": 8}')
    assert read_trained_on(model) == TrainedOn()


@pytest.mark.parametrize("name", [DATA_FILE, RECORD_FILE])
@pytest.mark.parametrize(
    ("content", "received"),
    [
        ({"splits": 3}, "3 for splits"),
        ({"splits": None}, "None for splits"),
        ({"splits": ["train"]}, "['train'] for splits"),
        ({"splits": {"train": 3}}, "'train' 3 in splits"),
        ({"splits": {"train": ["2026-03-01"]}}, "'train' ['2026-03-01'] in splits"),
        ({"splits": {"train": ["2026-03-01", 5]}}, "no time"),
        ({"splits": {"train": ["2026-03-01", "yesterday"]}}, "yesterday"),
        ({"splits": {"train": ["2026-03-02", "2026-03-01"]}}, "ends before it begins"),
        ({"splits": {"training": ["2026-03-01", "2026-03-02"]}}, "'training'"),
        ({"splits": {"test": ["2026-03-01", "2026-03-02"]}}, "splits without train"),
        ({"identity": []}, "[] for identity"),
        ({"identity": {"the fields": 3}}, "'the fields' 3 in identity"),
        ({"identity": {"splits": "ab"}}, "'ab' for splits"),
        ({"identity": {"splits": {"test": None}}}, "'test' None in identity.splits"),
        ([], "no object"),
    ],
)
def test_a_damaged_record_is_named(model: Path, name: str, content: Any, received: str) -> None:
    path = (model if name == DATA_FILE else model.parent) / name
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        read_trained_on(model)
    assert caught.value.argument == str(path)
    assert received in caught.value.received
    assert caught.value.expected
    assert caught.value.remedy
