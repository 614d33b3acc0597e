"""The catalog of bad input: refused in one line that says what, where and what to do; nothing is half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from climafuse import manifest
from climafuse.cli.app import app
from climafuse.data.store import prepare
from climafuse.errors import ClimafuseError
from climafuse.manifest import sha256
from climafuse.model import ClimateTextForCausalLM
from climafuse.scaling import study
from tests.matrix.attacks import transcript_of
from tests.matrix.conftest import STUDY
from tests.training.runs import TIMES, save_backbone, settings, write_climate

runner = CliRunner()
LAST = "2026-03-10T12:00"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A climate file, a backbone and a saved model that fit together."""
    folder = tmp_path_factory.mktemp("sound")
    climate, backbone = write_climate(folder / "fields.nc"), save_backbone(folder / "backbone")
    store = prepare(climate, folder / "store")
    torch.manual_seed(0)
    model = ClimateTextForCausalLM.from_backbone(
        backbone, statistics=store.statistics, dtype="float32", box_degrees=40.0, history=2,
        encoder_options={"width": 16, "depth": 1, "heads": 2, "patch": 2},
        fusion_options={"heads": 2, "head_width": 8, "feed_forward": 16},
    )  # fmt: skip
    model.save_pretrained(folder / "model")
    return folder


# ---- Fields: what is wrong -> how it is made of the sound dataset; None for files of another kind --------------

Change = Callable[[xr.Dataset], xr.Dataset]


def _curvilinear(dataset: xr.Dataset) -> xr.Dataset:
    latitude, longitude = xr.broadcast(dataset["latitude"], dataset["longitude"])
    plain = dataset.rename(latitude="y", longitude="x").drop_vars(["y", "x"])
    return plain.assign_coords(lat=(("y", "x"), latitude.values), lon=(("y", "x"), longitude.values))


def _poked(value: float, at: tuple[int, ...] = (...,)) -> Change:  # type: ignore[assignment]
    def change(dataset: xr.Dataset) -> xr.Dataset:
        dataset["msl"].values[at] = value
        return dataset

    return change


def _with_attribute(name: str, key: str, value: object) -> Change:
    def change(dataset: xr.Dataset) -> xr.Dataset:
        dataset[name].attrs[key] = value
        return dataset

    return change


def _axis(name: str, values: Any) -> Change:
    return lambda dataset: dataset.assign_coords({name: np.asarray(values)})


FIELDS: dict[str, Change] = {
    "no time at all": lambda d: d.isel(time=slice(0, 0)),
    "duplicate times": lambda d: d.isel(time=[*range(19), 18]),
    "no time coordinate": lambda d: d.drop_vars("time"),
    "missing times": _axis("time", np.where(np.arange(20) == 3, np.datetime64("NaT", "ns"), TIMES)),
    "time in words": lambda d: d.assign_coords(time=("time", np.arange(20), {"units": "steps"})),
    "unknown calendar": lambda d: d.assign_coords(
        time=("time", np.arange(20), {"units": "days since 2000-01-01", "calendar": "lunar"})
    ),
    "time beyond all measure": lambda d: d.assign_coords(
        time=("time", np.arange(20) * 1e300, {"units": "days since 2000-01-01"})
    ),
    "curvilinear grid": _curvilinear,
    "points": lambda d: d.stack(point=("latitude", "longitude")).reset_index("point"),
    "latitude of 91": _axis("latitude", np.linspace(-91, 91, 17)),
    "latitude missing": _axis("latitude", np.where(np.arange(17) == 3, np.nan, np.arange(-80.0, 81, 10))),
    "latitude twice": _axis("latitude", np.repeat(np.arange(-80.0, 81, 10), 2)[:17]),
    "longitude around twice": _axis("longitude", np.arange(0.0, 720, 20)),
    "no latitude": lambda d: d.rename(latitude="row").drop_vars("row"),
    "projected coordinates": lambda d: d.assign_coords(
        latitude=("latitude", np.arange(17) * 1e5, {"units": "m", "standard_name": "latitude"})
    ),
    "unit that cannot be converted": _with_attribute("msl", "units", "parsec"),
    "no unit": lambda d: d.assign(msl=d["msl"].drop_attrs()),
    "unit of another quantity": _with_attribute("msl", "units", "K"),
    "contradicting standard name": _with_attribute("msl", "standard_name", "air_temperature"),
    "scale in words": _with_attribute("msl", "scale_factor", "big"),
    "mixed expver": lambda d: d.assign_coords(expver=("time", ["0001"] * 10 + ["0005"] * 10)),
    "two members": lambda d: d.expand_dims(member=2),
    "model levels": lambda d: d.expand_dims(hybrid=3),
    "infinite value": _poked(np.inf, (-1, 9, 1)),
    "no known variable": lambda d: d.rename(t2m="a", msl="b"),
    "another variable than asked": lambda d: d.drop_vars("msl"),
    "text for values": lambda d: d.assign(msl=d["msl"].astype(str)),
    "complex values in parts": lambda d: d.assign(msl=d["msl"].astype("int8").astype(bool)),
}
# What only statistics can find.
NORMALIZATION: dict[str, Change] = {
    "nothing but missing values": _poked(np.nan),
    "the same value everywhere": _poked(101300.0),
    "too few times for three splits": lambda d: d.isel(time=[0, 1]),
}


def _sound_bytes(sound: Path) -> bytes:
    return (sound / "fields.nc").read_bytes()


def _empty_group(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')


OTHER_FILES: dict[str, Callable[[Path, Path], object]] = {
    "text named .nc": lambda path, sound: path.write_text("temperature,pressure\n1,2\n"),
    "a web page": lambda path, sound: path.write_text("<!DOCTYPE html><title>Log in</title>"),
    "zeros": lambda path, sound: path.write_bytes(bytes(10_000)),
    "an empty file": lambda path, sound: path.touch(),
    "nothing there": lambda path, sound: None,
    "a folder": lambda path, sound: path.mkdir(),
    "a link to nothing": lambda path, sound: path.symlink_to("nowhere"),
    "a pipe": lambda path, sound: os.mkfifo(path),
    "half of a file": lambda path, sound: path.write_bytes(_sound_bytes(sound)[: 40_000]),
    "the first bytes of a file": lambda path, sound: path.write_bytes(_sound_bytes(sound)[:100]),
    "a gzip archive": lambda path, sound: path.write_bytes(b"\x1f\x8b\x08" + bytes(50)),
    "a zip archive": lambda path, sound: path.write_bytes(b"PK\x03\x04" + bytes(50)),
    "an empty Zarr group": lambda path, sound: _empty_group(path),
}  # fmt: skip


def _refused(*arguments: Any, code: int | None = None) -> str:
    """The one line of a command that must fail; progress may stand before it."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in ((1, 2) if code is None else (code,)), result.output
    assert result.stdout == ""
    lines = [
        line for line in result.stderr.splitlines() if not line.endswith(" left") and ": expected" in line
    ]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[0] == result.stderr.splitlines()[-1]
    assert "; received " in lines[0]
    assert lines[0].partition("; received ")[2].rpartition(". ")[2]  # the remedy
    return lines[0]


def _listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _command(entry: str, source: Path, sound: Path, folder: Path) -> list[Any]:
    wanted = ["--variable", "t2m", "--variable", "msl"]
    match entry:
        case "data inspect":
            return ["data", "inspect", source, *wanted]
        case "data prepare":
            return ["data", "prepare", source, folder / "store", *wanted]
        case "data describe":
            return ["data", "describe", source, folder / "pairs.jsonl", "--box-degrees", 170, *wanted]
        case "infer":
            where = ["--time", LAST, "--location", "10,10", "--map", folder / "map.png"]
            return ["infer", sound / "model", "--climate", source, *where]
    path = source.parent / "run.yaml"
    path.write_text(json.dumps(settings(source, sound / "backbone", folder / "run")))
    return ["train", path]


ENTRIES = ("data inspect", "data prepare", "data describe", "infer", "train")
CASES = [(row, entry) for row in [*FIELDS, *OTHER_FILES] for entry in ENTRIES]
CASES += [(row, entry) for row in NORMALIZATION for entry in ("data prepare", "train")]


def pytest_generate_tests(metafunc):
    """All cases of the tables with `--thorough`, else every so many-th."""
    tables: dict[str, tuple[list[Any], int]] = {
        "row,entry": (CASES, 12),
        "pairs,entry": ([(name, entry) for name in PAIRS for entry in ("data prepare", "train")], 9),
        "setting": (list(CONFIGURATION), 7),
        "damage": (list(CHECKPOINTS), 5),
        "arguments": (list(INFER), 4),
        "place,entry": (
            [
                (place, entry)
                for place in DESTINATIONS
                for entry in ("data prepare", "data describe", "train")
            ],
            4,
        ),
        "planned": (list(STUDIES), 9),
        "results,entry": (
            [
                (name, entry)
                for name in [*DOCUMENTS, *RESULTS]
                for entry in ("scale table", "scale plot", "scale run")
            ],
            17,
        ),
        "record": ([*DOCUMENTS, *RECORDS], 7),
        "transcript": (list(TRANSCRIPTS), 5),
        "left,entry": (
            [(name, entry) for name, (_, entries) in RUNS.items() for entry in entries],
            6,
        ),
        "asked": (list(ASKED), 6),
    }
    for names, (cases, step) in tables.items():
        if names.partition(",")[0] in metafunc.fixturenames:
            chosen = cases if metafunc.config.option.thorough else cases[::step]
            ids = [(case if isinstance(case, str) else "-".join(case)).replace(" ", "_") for case in chosen]
            metafunc.parametrize(names, chosen, ids=ids)


@pytest.mark.sampled(2)
def test_fields(row, entry, sound, tmp_path, cell):
    cell("bad input", row, entry)
    source, folder = tmp_path / "fields.nc", tmp_path / "out"
    folder.mkdir()
    if row in OTHER_FILES:
        OTHER_FILES[row](source, sound)
    else:
        with xr.open_dataset(sound / "fields.nc") as dataset:
            (FIELDS | NORMALIZATION)[row](dataset.load().drop_encoding()).to_netcdf(source)
    line = _refused(*_command(entry, source, sound, folder))
    assert _listing(folder) == []
    assert source.name in line or "'msl'" in line or "msl" in line or "splits" in line, line


# ---- Pairs ----------------------------------------------------------------------------------------------------

TIME = str(TIMES[3].astype("datetime64[s]"))
_HEADER = "time,place,prompt,text\n"
PAIRS: dict[str, tuple[str, bytes]] = {
    "an empty file": ("jsonl", b""),
    "blank lines only": ("jsonl", b"\n\n \n"),
    "a header only": ("csv", _HEADER.encode()),
    "not UTF-8": ("jsonl", b'{"time": "2026-03-01", "text": "\xff"}\n'),
    "UTF-16": ("jsonl", '{"time": "2026-03-01", "text": "a"}\n'.encode("utf-16")),
    "Latin-1 in CSV": ("csv", (_HEADER + f"{TIME},,a,é\n").encode("latin-1")),
    "half a line": ("jsonl", b'{"time": "2026-03-01", "te'),
    "a list": ("jsonl", b"[1, 2]\n"),
    "no text": ("jsonl", f'{{"time": "{TIME}"}}\n'.encode()),
    "empty text": ("jsonl", f'{{"time": "{TIME}", "text": " "}}\n'.encode()),
    "text that is none": ("jsonl", f'{{"time": "{TIME}", "text": 7}}\n'.encode()),
    "no time": ("jsonl", b'{"text": "a"}\n'),
    "a key twice": ("jsonl", f'{{"time": "{TIME}", "text": "a", "text": "b"}}\n'.encode()),
    "30 February": ("jsonl", b'{"time": "2026-02-30", "text": "a"}\n'),
    "25 o'clock": ("jsonl", b'{"time": "2026-03-01T25:00", "text": "a"}\n'),
    "a range that ends first": ("jsonl", b'{"time": "2026-03-04/2026-03-02", "text": "a"}\n'),
    "a time outside": ("jsonl", b'{"time": "1999-01-01", "text": "a"}\n'),
    "a time between": ("jsonl", b'{"time": "2026-03-01T01:00", "text": "a"}\n'),
    "latitude of 91": ("jsonl", f'{{"time": "{TIME}", "text": "a", "place": "91,0"}}\n'.encode()),
    "longitude of 400": ("jsonl", f'{{"time": "{TIME}", "text": "a", "place": "0,400"}}\n'.encode()),
    "a box of no size": ("jsonl", f'{{"time": "{TIME}", "text": "a", "place": "0,0,0,10"}}\n'.encode()),
    "a box of NaN": ("jsonl", f'{{"time": "{TIME}", "text": "a", "place": "0,0,nan,10"}}\n'.encode()),
    "an unknown place": ("jsonl", f'{{"time": "{TIME}", "text": "a", "place": "Qwertzuiop"}}\n'.encode()),
    "an ambiguous place": ("jsonl", f'{{"time": "{TIME}", "text": "a", "place": "Valencia"}}\n'.encode()),
    "an unknown column": ("csv", f"when,text\n{TIME},a\n".encode()),
    "a column twice": ("csv", f"time,time,text\n{TIME},{TIME},a\n".encode()),
    "too few cells": ("csv", (_HEADER + f"{TIME},,a\n").encode()),
    "an open quote": ("csv", (_HEADER + f'{TIME},,a,"b\n').encode()),
    "facts that are no list": ("jsonl", f'{{"time": "{TIME}", "text": "a", "facts": 7}}\n'.encode()),
    "facts with NaN": ("jsonl", f'{{"time": "{TIME}", "text": "a", "facts": [{{"value": NaN}}]}}\n'.encode()),
    "a variable that none is": ("jsonl", f'{{"time": "{TIME}", "text": "a", "withheld": "tm2"}}\n'.encode()),
    "a sample of two windows": (
        "jsonl",
        f'{{"time": "{TIME}", "text": "a", "sample": 1}}\n{{"time": "2026-03-01", "text": "a", "sample": 1}}'.encode(),
    ),
    "a negative sample": ("jsonl", f'{{"time": "{TIME}", "text": "a", "sample": -1}}\n'.encode()),
    "a cut Parquet file": ("parquet", b"PAR1" + bytes(100)),
    "an unknown suffix": ("txt", b"a"),
}


def test_pairs(pairs, entry, sound, tmp_path, cell):
    cell("bad input", f"pairs: {pairs}", entry)
    suffix, content = PAIRS[pairs]
    path, folder = tmp_path / f"pairs.{suffix}", tmp_path / "out"
    path.write_bytes(content)
    folder.mkdir()
    if entry == "train":
        command = [*_command("train", sound / "fields.nc", sound, folder), "--set", f"data.pairs={path}"]
        command[1] = shutil.move(command[1], tmp_path / "run.yaml")
    else:
        command = ["data", "prepare", sound / "fields.nc", folder / "store", "--pairs", path]
    line = _refused(*command)
    assert f"pairs.{suffix}" in line
    assert _listing(folder) == []


@pytest.mark.parametrize("form", ["BOM", "CRLF", "both"])
def test_what_editors_of_windows_write_is_no_mistake(form, sound, tmp_path):
    text = _HEADER + "".join(f"{t.astype('datetime64[s]')},,Sky?,Fine.\n" for t in TIMES)
    text = text if form == "BOM" else text.replace("\n", "\r\n")
    (tmp_path / "pairs.csv").write_bytes((b"" if form == "CRLF" else b"\xef\xbb\xbf") + text.encode())
    command = ["data", "prepare", sound / "fields.nc", tmp_path / "store", "--pairs", tmp_path / "pairs.csv"]
    assert runner.invoke(app, list(map(str, command))).exit_code == 0


# ---- Configuration --------------------------------------------------------------------------------------------

CONFIGURATION: dict[str, str] = {
    "unknown section": "trainig.steps=3",
    "unknown key": "training.stepz=3",
    "text for a number": "training.steps=many",
    "fraction for a whole number": "training.steps=1.5",
    "a list for a number": "training.steps=[1]",
    "nothing for a number": "training.steps=null",
    "true for a number": "training.steps=true",
    "a number for text": "data.source=7",
    "zero steps": "training.steps=0",
    "negative steps": "training.steps=-1",
    "huge steps": "training.steps=99999999999999999999999",
    "NaN": "training.learning_rate=.nan",
    "infinity": "training.learning_rate=.inf",
    "negative rate": "training.learning_rate=-1e-3",
    "a share of 2": "facts.bulletin_fraction=2",
    "shares that exceed 1": "data.fractions=[1, 1, 1]",
    "two shares": "data.fractions=[0.5, 0.5]",
    "endless gap": "data.gap_hours=1e300",
    "box of 0": "data.box_degrees=0",
    "box of 400": "data.box_degrees=400",
    "no variables": "data.variables=[]",
    "a variable twice": "data.variables=[t2m, t2m]",
    "an unknown variable": "data.variables=[nonsense]",
    "a level that is absent": "data.variables=[t850]",
    "history of 0": "data.history=0",
    "history too long": "data.history=19",
    "an unknown kind of fact": "facts.kinds=[means]",
    "an unknown encoder": "encoder.name=nonsense",
    "an unknown fusion": "fusion.name=nonsense",
    "an unknown option": "encoder.options={nonsense: 1}",
    "option of another type": "encoder.options={width: wide}",
    "a negative option": "encoder.options={width: -16}",
    "an option of 0": "encoder.options={heads: 0}",
    "sites beyond the backbone": "fusion.sites=[99]",
    "sites in words": "fusion.sites=everywhere",
    "accumulation that does not divide": "training.accumulation=3",
    "an unknown type": "backbone.dtype=float8",
    "a backbone that is not there": "backbone.name=./nowhere",
    "negative seed": "training.seed=-1",
}


def test_configurations(setting, sound, tmp_path, cell):
    cell("bad input", f"configuration: {setting}", "train")
    folder = tmp_path / "out"
    folder.mkdir()
    command = _command("train", sound / "fields.nc", sound, folder)
    command[1] = shutil.move(command[1], tmp_path / "run.yaml")
    _refused(*command, "--set", CONFIGURATION[setting])
    assert _listing(folder) == []


# ---- Checkpoints ----------------------------------------------------------------------------------------------


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        path = model / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"weights_sha256": sha256(path)}))

    return damage


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


def _configured(**keys: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | keys))

    return damage


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "a missing tensor": _weights(lambda t: t.pop(_first(t))),
    "an extra tensor": _weights(lambda t: t.update(extra=torch.zeros(2))),
    "another name": _weights(lambda t: t.update({"other.weight": t.pop(_first(t))})),
    "another type": _weights(lambda t: t.update({_first(t): t[_first(t)].double()})),
    "another shape": _weights(lambda t: t.update({_first(t): torch.zeros(3, 3, 3)})),
    "no tensor": _weights(lambda t: t.clear()),
    "another checksum": lambda model: save_file({"x": torch.zeros(1)}, model / "model.safetensors"),
    "another encoder": _configured(encoder="conv", encoder_options={}),
    "an unknown encoder": _configured(encoder="nonsense"),
    "another width": _configured(encoder_options={"width": 32, "depth": 1, "heads": 2, "patch": 2}),
    "another site": _configured(sites=[0]),
    "another kind of model": _configured(model_type="llama"),
    "no statistics": _configured(statistics=None),
    "statistics of other variables": _configured(variables=["t2m", "msl", "tp"]),
    "a weight file of text": lambda model: (model / "model.safetensors").write_text("weights"),
    "an empty configuration": lambda model: (model / "config.json").write_text(""),
    "no configuration": lambda model: (model / "config.json").unlink(),
    "no weights": lambda model: (model / "model.safetensors").unlink(),
    "another backbone": _configured(
        backbone={"id": "{backbone}", "content_hash": "sha256:0", "architecture": "X"}
    ),
}


def test_checkpoints(damage, sound, tmp_path, cell):
    cell("bad input", f"checkpoint: {damage}", "infer")
    model = Path(shutil.copytree(sound / "model", tmp_path / "model"))
    CHECKPOINTS[damage](model)
    if damage == "another backbone":
        text = (model / "config.json").read_text()
        (model / "config.json").write_text(text.replace("{backbone}", str(sound / "backbone")))
    _refused("infer", model, "--climate", sound / "fields.nc", "--time", LAST, "--location", "10,10")


INFER: dict[str, tuple[list[str], int]] = {
    "a time that is not there": (["--time", "2027-01-01", "--location", "0,0"], 1),
    "a time between": (["--time", "2026-03-10T11:00", "--location", "0,0"], 1),
    "30 February": (["--time", "2026-02-30", "--location", "0,0"], 2),
    "a time in words": (["--time", "tomorrow", "--location", "0,0"], 2),
    "the first time, without history": (["--time", "2026-03-01", "--location", "0,0"], 1),
    "latitude of 91": (["--time", LAST, "--location", "91,0"], 2),
    "longitude of 361": (["--time", LAST, "--location", "0,361"], 2),
    "longitude of -181": (["--time", LAST, "--location", "0,-181"], 2),
    "a place of letters": (["--time", LAST, "--location", "Qwertzuiop"], 2),
    "no place, and a globe": (["--time", LAST], 2),
    "a map of no known kind": (["--time", LAST, "--location", "0,0", "--map", "map.doc"], 2),
}


def test_questions(arguments, sound, tmp_path, cell, monkeypatch):
    cell("bad input", f"question: {arguments}", "infer")
    monkeypatch.chdir(tmp_path)
    options, code = INFER[arguments]
    _refused("infer", sound / "model", "--climate", sound / "fields.nc", *options, code=code)
    assert _listing(tmp_path) == []


# ---- Studies --------------------------------------------------------------------------------------------------

_BASE = STUDY.partition("grid")[0]
_MANY = ", ".join(map(str, range(1, 1001)))
_TWO = f"{{training.seed: [{_MANY}], training.steps: [{_MANY}]}}"
_BY_BASE = f"{_BASE}grid: {{training.seed: [1]}}\n".replace


def _of_grid(grid: str) -> str:
    return f"{_BASE}grid: {{{grid}}}\n"


STUDIES: dict[str, str | bytes] = {
    "nothing": "",
    "bytes": bytes(range(256)),
    "Latin-1": "name: \u00e9\n".encode("latin-1"),
    "UTF-16": STUDY.encode("utf-16"),
    "a list": "[1, 2]\n",
    "two documents": STUDY + "---\nname: other\n",
    "a bomb of aliases": "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n",
    "an alias of itself": "name: small\nruns: &a [*a]\n",
    "brackets without end": "base: " + "[" * 20_000,
    "code": "name: !!python/object/apply:os.system ['true']\n",
    "half a character": _of_grid('data.source: ["\\ud800"]'),
    "a key twice": STUDY + "name: other\n",
    "an axis twice": f"{_BASE}grid:\n  training.seed: [1]\n  training.seed: [2]\n",
    "a key twice in a list": f"{_BASE}runs:\n  - {{training.seed: 1, training.seed: 2}}\n",
    "a key twice in a bundle": _of_grid("fusion: [{name: film, name: prefix}]"),
    "an unknown key": STUDY + "budgett: {steps: 2}\n",
    "an unknown setting": _of_grid("trainig.seed: [1]"),
    "an unknown setting in a bundle": _of_grid("fusion: [{nmae: film}]"),
    "an unknown fusion": _of_grid("fusion.name: [nonsense]"),
    "a fusion of code": _of_grid('fusion.name: ["os:system"]'),
    "an unknown option": _of_grid("fusion: [{name: film, options: {nonsense: 1}}]"),
    "no name": "grid: {training.seed: [1]}\n",
    "a name that leaves": _BY_BASE("small", "../../escaped"),
    "an absolute name": _BY_BASE("small", "/etc/small"),
    "a name with a zero byte": _BY_BASE("small", '"a\\0b"'),
    "no runs": "name: small\n",
    "an axis without values": _of_grid("training.seed: []"),
    "an axis of one value": _of_grid("training.seed: 7"),
    "a number for a key": _of_grid("7: [1]"),
    "a number for a key in a bundle": _of_grid("fusion: [{7: film}]"),
    "a number for a key in a run": _BASE + "runs: [{7: 1}]\n",
    "a number for a section": _BY_BASE("{training: {learning_rate: 1e-3, steps: 2}}", "{training: 7}"),
    "a date for an option": _of_grid("fusion: [{name: film, options: {queries: 2026-01-01}}]"),
    "bytes for an option": _of_grid("fusion: [{name: film, options: {queries: !!binary aGk=}}]"),
    "a set for an option": _of_grid("fusion: [{name: film, options: {queries: !!set {a}}}]"),
    "NaN": _of_grid("training.learning_rate: [.nan]"),
    "infinity for an option": _of_grid("fusion: [{name: film, options: {queries: .inf}}]"),
    "a number of 400 digits": f"{STUDY}budget: {{steps: {'9' * 400}}}\n",
    "endless seconds": STUDY + "budget: {seconds: .inf}\n",
    "no seconds": STUDY + "budget: {seconds: 0}\n",
    "a million runs": _of_grid(f"training.seed: [{_MANY}], training.steps: [{_MANY}]"),
    "a trillion runs": _of_grid(
        ", ".join(f"training.{key}: [{_MANY}]" for key in ("seed", "steps", "a", "b"))
    ),
    "a million runs of a list": f"{_BASE}runs: [{', '.join(['{training.seed: 1}'] * 5000)}]\n",
    "a million runs of the best": f"{STUDY}stages: [{{grid: {_TWO}}}]\n",
    "chosen by the test split": STUDY + "metric: test.fact_f1.true\n",
    "chosen by nonsense": STUDY + "metric: nonsense\n",
    "a stage of none": STUDY + "stages: [{best: 0, grid: {training.seed: [1]}}]\n",
    "a stage that changes nothing": STUDY + "stages: [{best: 2}]\n",
    "distinct in an unknown key": STUDY + "stages: [{distinct: [nonsense], grid: {training.seed: [1]}}]\n",
    "runs in folders of their own": _of_grid("output.directory: [a, /etc]"),
}
STUDY_FILES = ("nothing there", "a folder", "a pipe", "a link to nothing")


def test_studies(planned, tmp_path, cell, monkeypatch):
    cell("bad input", f"study: {planned}", "scale run")
    monkeypatch.chdir(tmp_path)
    content = STUDIES[planned]
    Path("study.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    for options in ([], ["--dry-run"]):
        line = _refused("scale", "run", "study.yaml", *options, code=2)
    if "unknown setting" in planned or planned == "an unknown key":
        assert "Did you mean " in line
    assert _listing(tmp_path) == ["study.yaml"]


@pytest.mark.parametrize("kind", STUDY_FILES)
@pytest.mark.parametrize("command", ["scale run", "train"])
def test_files_of_settings(kind, command, sound, tmp_path, cell):
    cell("bad input", f"settings: {kind}", command)
    path = tmp_path / "settings.yaml"
    OTHER_FILES[kind](path, sound)
    before = _listing(tmp_path)
    assert "settings.yaml" in _refused(*command.split(), path, code=2)
    assert _listing(tmp_path) == before


def test_no_run_of_a_study_looks_at_every_other(tmp_path, monkeypatch):
    """Else as many runs as are allowed would take minutes to be read, again and again."""
    calls = []
    monkeypatch.setattr(study, "opened", lambda *a, real=study.opened: calls.append(a) or real(*a))
    path = tmp_path / "study.yaml"
    path.write_text(_of_grid("training.seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], training.steps: [1, 2, 3, 4]"))
    runs = study.first_runs(study.load_study(path))
    assert len({run.id for run in runs}) == 40
    assert len(calls) < 600  # every run at every other: 3,200 at least


# Documents in place of one that a command has written.
DOCUMENTS: dict[str, bytes] = {
    "an empty file": b"",
    "bytes": bytes(range(256)),
    "half a file": b'{"format": 1, "study": {"na',
    "a list": b"[]",
    "a number": b"7",
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "brackets without end": b"[" * 200_000,
    "a number of 5,000 digits": b'{"format": ' + b"9" * 5000 + b"}",
    "a format that is NaN": b'{"format": NaN}',
    "a format of text": b'{"format": "1"}',
    "nothing but a format": b'{"format": 1}',
}
Edit = Callable[[dict[str, Any]], object]
RECORDS: dict[str, Edit] = {
    "no status": lambda r: r.pop("status"),
    "an unknown status": lambda r: r.update(status="lost"),
    "a failure without a reason": lambda r: r.update(status="failed"),
    "no figures": lambda r: r.pop("figures"),
    "figures of a list": lambda r: r.update(figures=[1]),
    "settings of a list": lambda r: r.update(settings=[1]),
    "seconds in words": lambda r: r.update(seconds="long"),
    "endless seconds": lambda r: r.update(seconds=float("inf")),
    "half a character": lambda r: r.update(label="\ud800"),
}
RESULTS: dict[str, Edit] = {
    "no study": lambda c: c.pop("study"),
    "no runs": lambda c: c.pop("runs"),
    "runs of numbers": lambda c: c.update(runs=[7]),
    "a run without a status": lambda c: RECORDS["no status"](c["runs"][0]),
    "a budget of words": lambda c: c["study"].update(budget={"seconds": "long", "steps": None}),
    "no budget": lambda c: c["study"].update(budget=None),
    "a metric that is none": lambda c: c["study"].update(metric=7),
    "no machine": lambda c: c.update(machine=None),
    "a date that is none": lambda c: c.update(date=7),
    "half a character": lambda c: c["study"].update(question="\ud800"),
}


def _edited(path: Path, edit: Edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_results_of_studies(results, entry, proven, tmp_path, cell):
    cell("bad input", f"results: {results}", entry)
    folder = Path(shutil.copytree(proven / "study", tmp_path / "study"))
    path = folder / "results.json"
    if results in DOCUMENTS:
        path.write_bytes(DOCUMENTS[results])
    else:
        _edited(path, RESULTS[results])
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    command = [proven / "study.yaml", "-o", folder] if entry == "scale run" else [folder]
    assert "results.json" in _refused(*entry.split(), *command, code=1)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_records_of_runs_of_studies(record, proven, tmp_path, cell):
    """A damaged record is no reason to throw away hours: who deletes it has the run taken up again."""
    cell("bad input", f"record of a run: {record}", "scale run")
    folder = Path(shutil.copytree(proven / "study", tmp_path / "study"))
    path = min(folder.glob("runs/*/result.json"))
    if record in DOCUMENTS:
        path.write_bytes(DOCUMENTS[record])
    else:
        _edited(path, RECORDS[record])
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    line = _refused("scale", "run", proven / "study.yaml", "-o", folder, code=1)
    assert f"{path}: " in line
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


FIGURES: dict[str, Edit] = {
    "NaN": lambda f: f.update(true=float("nan")),
    "a number of 400 digits": lambda f: f.update(true=10**400),
    "a word": lambda f: f.update(true="high"),
    "a truth value": lambda f: f.update(true=True),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_that_is_none_counts_as_not_measured(figure, proven, tmp_path, cell):
    cell("bad input", f"figure: {figure}", "scale table")
    folder = Path(shutil.copytree(proven / "study", tmp_path / "study"))
    _edited(
        folder / "results.json", lambda c: FIGURES[figure](c["runs"][1]["figures"]["validation"]["fact_f1"])
    )
    found = runner.invoke(app, ["scale", "table", str(folder)])
    assert found.exit_code == 0, found.output
    first, second = (line for line in found.stdout.splitlines() if "film" in line or "gated" in line)
    assert first.startswith("*  film")  # which was the worse of the two
    assert second.split()[2] == "–"


# ---- What a run and its evaluation left --------------------------------------------------------------------------


def _document(name: str, document: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(DOCUMENTS[document])


def _altered_manifest(**keys: Any) -> Callable[[Path], None]:
    """A manifest with a digest that fits: anybody can write one."""

    def damage(run: Path) -> None:
        path = run / "model" / "manifest.json"
        content = json.loads(path.read_text()) | keys
        path.write_text(manifest._spelled(content | {"digest": manifest._digest(content)}))

    return damage


def _in_place_of(
    name: str | Callable[[Path], Path], make: Callable[[Path], object]
) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        path = name(run) if callable(name) else run / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)

    return damage


_SIX = ("an empty file", "bytes", "half a file", "a list", "brackets without end", "a number of 5,000 digits")
# What is wrong -> how it is made, and who shall refuse it.
RUNS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "nothing there": (shutil.rmtree, ("evaluate", "report", "attribute --planted", "demo")),
    "no model": (lambda run: shutil.rmtree(run / "model"), ("evaluate", "attribute --planted", "demo")),
    "neither model nor checkpoint": (
        lambda run: [shutil.rmtree(path) for path in (run / "model", *run.glob("checkpoint-*"))],
        ("report",),
    ),
    "weights cut short": (
        lambda run: (run / "model" / "model.safetensors").write_bytes(b"\0" * 100),
        ("evaluate", "report", "attribute --planted", "demo"),
    ),
    "no configuration of the run": (
        _in_place_of("model/run.yaml", lambda path: None), ("evaluate", "report", "attribute --planted", "demo"),
    ),
    **{
        f"record of the run: {name}": (_document("run.json", name), ("evaluate", "report")) for name in _SIX
    },
    "record of the run: a pipe": (_in_place_of("run.json", os.mkfifo), ("evaluate", "report")),
    **{f"evaluation: {name}": (_document("evaluation/evaluation.json", name), ("report",)) for name in _SIX},
    "evaluation: a pipe": (_in_place_of("evaluation/evaluation.json", os.mkfifo), ("report",)),
    "evaluation: another format": (
        lambda run: (run / "evaluation" / "evaluation.json").write_text('{"format": 99}'), ("report",)
    ),
    "evaluation: a file for its folder": (
        _in_place_of("evaluation", Path.touch), ("evaluate", "evaluate --controls")
    ),
    "transcript: a folder": (_in_place_of(transcript_of, Path.mkdir), ("evaluate",)),
    "transcript: a pipe": (_in_place_of(transcript_of, os.mkfifo), ("evaluate",)),
    "control: a file for its folder": (
        _in_place_of("evaluation/controls/text_only", Path.touch), ("evaluate --controls",)
    ),
    "steps in words": (_altered_manifest(details={"step": "many"}), ("evaluate --controls",)),
    "steps without end": (_altered_manifest(details={"step": 10**12}), ("evaluate --controls",)),
    "no details": (_altered_manifest(details=7), ("evaluate --controls",)),
}  # fmt: skip


def _entry(entry: str, run: Path) -> list[Any]:
    match entry:
        case "evaluate":
            return ["evaluate", run, "--no-controls"]
        case "evaluate --controls":
            return ["evaluate", run]
        case "attribute --planted":
            return ["attribute", run, "--planted", 2]
        case "demo":
            return ["demo", run, "--no-browser", "--port", 0]
    return [entry, run]


def test_what_a_run_left(left, entry, proven, tmp_path, cell):
    cell("bad input", f"run: {left}", entry)
    if entry == "demo":
        pytest.importorskip("gradio")
    run = Path(shutil.copytree(proven / "run", tmp_path / "run"))
    RUNS[left][0](run)
    before = _listing(tmp_path)
    _refused(*_entry(entry, run))
    assert _listing(tmp_path) == before


def _lines(change: Callable[[str, Any], bytes | None]) -> Callable[[list[bytes]], list[bytes]]:
    """Changes entries of a transcript: from key and value to the line that stands there; None leaves it."""

    def damage(lines: list[bytes]) -> list[bytes]:
        return [lines[0], *(change(*json.loads(line)) or line for line in lines[1:])]

    return damage


def _answers(value: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return _lines(lambda key, told: b'["%s", %s]' % (key.encode(), value) if isinstance(told, str) else None)


def _scores(value: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return _lines(lambda key, told: b'["%s", %s]' % (key.encode(), value) if isinstance(told, list) else None)


TRANSCRIPTS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "nothing": lambda lines: [],
    "bytes": lambda lines: [lines[0], bytes(range(256)), *lines[1:]],
    "brackets without end": lambda lines: [lines[0], b"[" * 200_000, *lines[1:]],
    "a first line of brackets": lambda lines: [b"[" * 200_000, *lines[1:]],
    "UTF-16": lambda lines: [b"\n".join(lines).decode().encode("utf-16")],
    "another identity": lambda lines: [b'{"identity": {}}', *lines[1:]],
    "answers with half a character": _answers(b'"\\ud800"'),
    "numbers for answers": _answers(b"[1.5, 3, 2, 9]"),
    "nothing for answers": _answers(b"null"),
    "text for likelihoods": _scores(b'"text"'),
    "likelihoods of NaN": _scores(b"[NaN, 3, 2, 9]"),
    "likelihoods without end": _scores(b"[Infinity, 3, 2, 9]"),
    "likelihoods that add up to infinity": _scores(b"[1e308, 3, 2, 9]"),
    "texts of no bytes": _scores(b"[1.5, 3, 2, 0]"),
    "more tokens right than there are": _scores(b"[1.5, 3, 4, 9]"),
    "tokens by the half": _scores(b"[1.5, 2.5, 2, 9]"),
    "likelihoods of 400 digits": _scores(b"[" + b"9" * 400 + b", 3, 2, 9]"),
}


@pytest.mark.sampled(2)
def test_what_is_damaged_of_a_transcript_is_asked_anew(transcript, proven, tmp_path, cell):
    """Oracle: the figures of the evaluation that nobody has damaged."""
    cell("bad input", f"transcript: {transcript}", "evaluate")
    run = Path(shutil.copytree(proven / "run", tmp_path / "run"))
    path = transcript_of(run)
    lines = TRANSCRIPTS[transcript](path.read_bytes().splitlines())
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    found = runner.invoke(app, ["evaluate", str(run), "--no-controls"])
    assert found.exit_code == 3, found.output
    one, other = (
        json.loads((folder / "evaluation" / "evaluation.json").read_text())
        for folder in (proven / "run", run)
    )
    apart = {"date", "seconds", "checkpoint"}
    assert {key: one[key] for key in one.keys() - apart} == {key: other[key] for key in other.keys() - apart}


_HERE = ["--time", LAST, "--location", "10,10"]
_ASK = ["--climate", "{fields}", *_HERE, "--prompt", "What is the mean temperature?"]
_LONG = "x" * 5000
ASKED: dict[str, tuple[list[str], int]] = {
    "attribute: no question": (["attribute", "{model}", *_ASK[:-2]], 2),
    "attribute: a region of no cell": (["attribute", "{model}", *_ASK, "--size", "0"], 2),
    "attribute: a region of a million": (["attribute", "{model}", *_ASK, "--size", "1000000"], 2),
    "attribute: an unknown fill": (["attribute", "{model}", *_ASK, "--fill", "nonsense"], 2),
    "attribute: a map of no known kind": (["attribute", "{model}", *_ASK, "--map", "map.doc"], 2),
    "attribute: a map inside a file": (["attribute", "{model}", *_ASK, "--map", "{fields}/map.png"], 1),
    "attribute: a prompt without end": (["attribute", "{model}", *_ASK[:-1], "x" * 100_000], 1),
    "attribute: a time that is not there": (
        ["attribute", "{model}", *_ASK[:2], "--time", "2027-01-01", *_ASK[4:]], 1
    ),
    "attribute: a place of letters": (["attribute", "{model}", *_ASK[:5], "Qwertzuiop", *_ASK[6:]], 2),
    "attribute: fields that are not there": (["attribute", "{model}", "--climate", "x.nc", *_ASK[2:]], 1),
    "attribute: a name of 5,000 letters": (["attribute", "{model}", "--climate", _LONG, *_ASK[2:]], 1),
    "planted: a question, too": (["attribute", "{run}", "--planted", "2", "--prompt", "Warm?"], 2),
    "planted: an unknown fill": (["attribute", "{run}", "--planted", "2", "--fill", "nonsense"], 2),
    "planted: a region of no cell": (["attribute", "{run}", "--planted", "2", "--size", "0"], 2),
    "planted: fields that are not there": (["attribute", "{run}", "--planted", "2", "--climate", "x.nc"], 1),
    "evaluate: fields that are not there": (["evaluate", "{run}", "--climate", "x.nc"], 1),
    "evaluate: fields of no name": (["evaluate", "{run}", "--climate", ""], 1),
    "evaluate: a name of 5,000 letters": (["evaluate", "{run}", "--climate", _LONG], 1),
    "evaluate: settings for fields": (["evaluate", "{run}", "--climate", "{settings}"], 1),
    "evaluate: other variables": (["evaluate", "{run}", "--climate", "{less}"], 1),
    "evaluate: too few times": (["evaluate", "{run}", "--climate", "{one}"], 2),
    "evaluate: pairs that are not there": (["evaluate", "{run}", "--pairs", "x.jsonl"], 1),
    "evaluate: pairs of no name": (["evaluate", "{run}", "--pairs", ""], 2),
    "evaluate: pairs of nothing": (["evaluate", "{run}", "--pairs", "{empty}"], 1),
    "planted: other variables": (["attribute", "{run}", "--planted", "2", "--climate", "{less}"], 1),
    "planted: fields of training": (["attribute", "{run}", "--planted", "2", "--climate", "{learned}"], 2),
    "evaluate: a folder for figures": (["evaluate", "{run}", "--no-controls", "--json", "{folder}"], 1),
    "report: a folder for the page": (["report", "{run}", "--no-attribution", "-o", "{folder}"], 1),
    "report: a page inside a file": (["report", "{run}", "--no-attribution", "-o", "{fields}/x.html"], 1),
    "report: a checkpoint for its run": (["report", "{checkpoint}"], 1),
    "report: a study for a run": (["report", "{study}"], 1),
    "demo: fields that are not there": (["demo", "{run}", "--port", "0", "--climate", "x.nc"], 1),
    "demo: a name of 5,000 letters": (["demo", "{run}", "--port", "0", "--climate", _LONG], 1),
    "demo: other variables": (["demo", "{run}", "--port", "0", "--climate", "{less}"], 1),
    "demo: fewer times than a window has": (["demo", "{run}", "--port", "0", "--climate", "{one}"], 1),
    "demo: a study for a run": (["demo", "{study}", "--port", "0"], 1),
    "scale run: a file for the folder": (["scale", "run", "{study}.yaml", "-o", "{fields}"], 1),
    "scale run: a folder inside a file": (["scale", "run", "{study}.yaml", "-o", "{fields}/x"], 1),
    "scale run: a name of 5,000 letters": (["scale", "run", "{study}.yaml", "-o", _LONG], 1),
    "scale run: the folder of another study": (["scale", "run", "{other}", "-o", "{study}"], 1),
    "scale table: a run for a study": (["scale", "table", "{run}"], 1),
    "scale table: nothing there": (["scale", "table", "nowhere"], 1),
    "scale plot: a file for a study": (["scale", "plot", "{fields}"], 1),
}  # fmt: skip


def test_what_is_asked_of_proofs(asked, proven, tmp_path, cell, monkeypatch):
    cell("bad input", *asked.split(": ")[::-1])
    monkeypatch.chdir(tmp_path)
    command, code = ASKED[asked]
    if command[0] == "demo":
        pytest.importorskip("gradio")
    folder = Path(shutil.copytree(proven, tmp_path / "all"))
    places = {
        "run": folder / "run", "model": folder / "run" / "model", "fields": folder / "fields.nc",
        "study": folder / "study", "settings": folder / "run.yaml", "folder": folder,
        "less": folder / "less.nc", "one": folder / "one.nc", "empty": folder / "empty.jsonl",
        "other": folder / "other.yaml", "learned": folder / "learned.nc",
        "checkpoint": next(iter(sorted((folder / "run").glob("checkpoint-*")))),
    }  # fmt: skip
    with xr.open_dataset(places["fields"]) as dataset:
        dataset.drop_vars("msl").to_netcdf(places["less"])
        dataset.isel(time=[0]).to_netcdf(places["one"])
        # Those of its test times are those of training, five days before.
        dataset.assign_coords(time=dataset["time"] - np.timedelta64(5, "D")).to_netcdf(places["learned"])
    places["empty"].touch()
    places["other"].write_text(STUDY.replace("small", "another"))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    _refused(*(part.format(**places) for part in command), code=code)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ---- Places to write, and folders given for others ------------------------------------------------------------


# Root may write anywhere.
DESTINATIONS = ("a file", "inside a file", "a folder in use", *(["no permission"] if os.geteuid() else []))


def test_destinations(place, entry, sound, tmp_path, cell):
    cell("bad input", f"destination: {place}", entry)
    target = tmp_path / "target.jsonl"
    match place:
        case "a file" | "inside a file":
            target.write_text("mine")
        case "a folder in use":
            target.mkdir()
            (target / "mine").touch()
            if entry == "train":  # a folder of an earlier run
                (target / "checkpoint-3").mkdir()
        case _:
            target.mkdir(mode=0o500)
    before = _listing(tmp_path)
    inside = target / "x.jsonl" if place in ("inside a file", "no permission") else target
    if entry == "data describe" and place == "a file":
        return  # pairs are replaced by pairs
    command = _command(entry, sound / "fields.nc", sound, tmp_path)
    if entry == "train":
        command = ["train", shutil.move(sound / "run.yaml", tmp_path / "run.yaml"), "--output", inside]
        before.append("run.yaml")
    else:
        command[3] = inside
    _refused(*command)
    assert _listing(tmp_path) == sorted(before)


def test_interruption_is_one_line(sound, tmp_path, cell):
    cell("bad input", "Ctrl-C", "train")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings(sound / "fields.nc", sound / "backbone", tmp_path / "run")))
    script = (
        "import _thread, sys; from climafuse.cli.app import main; import climafuse.training.config as c\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "c.load_config = stop\n"
        f"sys.argv = ['climafuse', 'train', {str(path)!r}]; main()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 130
    assert result.stdout == ""
    assert len(result.stderr.split("\n")) <= 3
    assert "Traceback" not in result.stderr


def test_errors_are_those_of_the_python_calls(sound, tmp_path, cell):
    from climafuse.data.sources import open_climate

    cell("bad input", "text named .nc", "open_climate")
    (tmp_path / "fields.nc").write_text("text")
    with pytest.raises(ClimafuseError) as caught:
        open_climate(tmp_path / "fields.nc")
    line = _refused("data", "inspect", tmp_path / "fields.nc")
    assert line == f"error: {caught.value}"
