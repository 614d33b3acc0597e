"""What a run is resumed on: the same fields, texts, times and places, from wherever they come."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import xarray as xr

from climafuse.data.pairs import Pair
from climafuse.data.store import TrainingStore, prepare
from climafuse.data.window import Box
from climafuse.errors import CheckpointError
from climafuse.training.dataset import make_examples
from climafuse.training.identity import identify, identify_split
from climafuse.training.pipeline import run
from tests.training.runs import TIMES, make_config, save_backbone, write_climate

BOX = Box(40, 10, 40, 40)


@pytest.fixture
def climate(tmp_path: Path) -> Path:
    return write_climate(tmp_path / "fields.nc")


def pairs(**changes: object) -> list[Pair]:
    made = [
        Pair((time, time), BOX, f"How warm is it in case {number}?", f"Case {number}.", sample=number)
        for number, time in enumerate(TIMES.astype("datetime64[s]"))
    ]
    number = 3
    return [*made[:number], replace(made[number], **changes), *made[number + 1 :]]


def identity_of(source: object, texts: list[Pair], folder: Path) -> dict[str, str]:
    config = make_config(Path("unused"), Path("unused"), folder, data={"history": 1})
    if isinstance(source, xr.Dataset):
        store = TrainingStore.from_dataset(source, pairs=texts)
    else:
        store = TrainingStore.open(folder / "store", memory_bytes=0)
    return identify(store, [make_examples(store, split, config) for split in ("train", "validation")])


def canonical(path: Path) -> xr.Dataset:
    with xr.open_dataset(path) as opened:
        return opened.load().sortby("longitude")


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, set()),
        ({"text": "Another."}, {"the texts"}),
        ({"prompt": "Another?"}, {"the texts"}),
        ({"withheld": ("msl",)}, {"the texts"}),
        ({"place": Box(40, 30, 40, 40)}, {"the times and places of the texts", "the fields"}),
        (
            {"times": (TIMES[4].astype("datetime64[s]"),) * 2},
            {"the times and places of the texts", "the fields"},
        ),
        ({"sample": 4}, None),
    ],
)
def test_any_change_of_a_pair_shows_in_what_it_changes(climate, tmp_path, changes, differs) -> None:
    before = identity_of(canonical(climate), pairs(), tmp_path)
    now = identity_of(canonical(climate), pairs(**changes), tmp_path)
    found = {key for key in before if before[key] != now[key]}
    assert found == differs if differs is not None else "the times and places of the texts" in found


def test_other_fields_with_the_same_statistics_show(climate, tmp_path) -> None:
    fields = canonical(climate)
    mirrored = fields.copy()
    for name in ("t2m", "msl"):
        mirrored[name] = fields[name].copy(data=fields[name].values[:, :, ::-1])
    before, now = (identity_of(each, pairs(), tmp_path) for each in (fields, mirrored))
    assert {key for key in before if before[key] != now[key]} == {"the fields"}


def test_where_the_fields_lie_does_not_matter(climate, tmp_path) -> None:
    prepare(climate, tmp_path / "store", variables=["t2m", "msl"], pairs=pairs())
    assert identity_of(tmp_path / "store", [], tmp_path) == identity_of(canonical(climate), pairs(), tmp_path)


def test_a_run_is_not_resumed_on_fields_that_were_mirrored(climate, tmp_path) -> None:
    backbone = save_backbone(tmp_path / "backbone")
    run(make_config(climate, backbone, tmp_path / "run", training={"steps": 4}), say=lambda line: None)
    with xr.open_dataset(climate) as opened:
        fields = opened.load()
    for name in ("t2m", "msl"):
        fields[name] = fields[name].copy(data=fields[name].values[:, :, ::-1])
    (tmp_path / "moved").mkdir()
    other, same = tmp_path / "moved" / "other.nc", tmp_path / "moved" / "same.nc"
    fields.to_netcdf(other)
    shutil.copy(climate, same)
    config = make_config(other, backbone, tmp_path / "run")
    with pytest.raises(
        CheckpointError, match=r"the (texts|fields): expected what checkpoint-4 was trained on"
    ):
        run(config, resume=True, say=lambda line: None)
    result = run(make_config(same, backbone, tmp_path / "run"), resume=True, say=lambda line: None)
    assert result["steps"] == 8


@pytest.mark.parametrize("texts", [True, False])
def test_what_is_asked_of_a_split_is_its_fields_and_the_texts_that_were_given(climate, texts) -> None:
    config = make_config(Path("unused"), Path("unused"), Path("unused"), data={"history": 1})
    fields = canonical(climate)

    def test_split(fields: xr.Dataset, made: list[Pair]) -> str:
        store = TrainingStore.from_dataset(fields, pairs=made)
        return identify_split(make_examples(store, "test", config), texts=texts)

    last = len(TIMES) - 1
    reworded = [replace(pair, text="Another.") if pair.sample == last else pair for pair in pairs()]
    before = test_split(fields, pairs())
    assert before == test_split(fields.copy(deep=True), pairs())
    assert before == test_split(fields, pairs(text="Another."))  # of a training time
    assert (before != test_split(fields, reworded)) is texts
    changed = fields.copy(deep=True)
    changed["t2m"].loc[{"time": TIMES[-1], "latitude": 40, "longitude": 10}] += 1
    assert before != test_split(changed, pairs())
