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

from climafuse.cli.app import app
from climafuse.data.store import prepare
from climafuse.errors import ClimafuseError
from climafuse.manifest import sha256
from climafuse.model import ClimateTextForCausalLM
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
    }
    for names, (cases, step) in tables.items():
        if names.partition(",")[0] in metafunc.fixturenames:
            chosen = cases if metafunc.config.option.thorough else cases[::step]
            ids = [(case if isinstance(case, str) else "-".join(case)).replace(" ", "_") for case in chosen]
            metafunc.parametrize(names, chosen, ids=ids)


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


def test_a_run_folder_names_the_model_in_it(sound, tmp_path, cell):
    cell("bad input", "folder of a run for that of a model", "infer")
    shutil.copytree(sound / "model", tmp_path / "run" / "model")
    line = _refused("infer", tmp_path / "run", "--climate", sound / "fields.nc", "--time", LAST)
    assert f"Give {tmp_path / 'run' / 'model'}." in line


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
