"""The command line: exit codes, one-line errors, JSON on standard output, and a fast --help."""

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import typer
import xarray as xr
import yaml
from typer.testing import CliRunner

import climafuse
from climafuse.cli import handler
from climafuse.cli.app import app
from climafuse.data import store
from climafuse.data.pairs import read_pairs
from climafuse.data.places import Place
from climafuse.data.window import Window
from climafuse.errors import ClimateFileError, ConfigurationError

runner = CliRunner()


def _one_line_error(result, exit_code):
    """The line on standard error; nothing on standard output, no traceback."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_version():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"climafuse {climafuse.__version__}\n"


def test_help_lists_every_command():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("train", "infer", "data", "backbone", "doctor"):
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["infer"],
        ["demo"],
        ["data", "inspect"],
        ["data", "describe"],
        ["data", "prepare"],
        ["data", "download"],
        ["backbone", "list"],
        ["doctor"],
    ],
)
def test_every_command_has_help(arguments):
    result = runner.invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_help_is_fast():
    """Measured as the best of three runs of the interpreter alone against three with --help."""
    import time

    def best(*arguments):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best("-m", "climafuse", "--help") - best("-c", "pass") < 0.9


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["nonsense"],
        ["infer"],
        ["data", "describe"],
        ["data", "describe", "a", "b", "--windows", "few"],
    ],
)
def test_wrong_call_exits_2_without_traceback(arguments):
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr
    assert "Traceback" not in result.stderr


def _app_raising(error):
    small = typer.Typer(cls=handler.CommandGroup, rich_markup_mode=None, pretty_exceptions_enable=False)

    @small.callback()
    def _group() -> None:
        pass

    @small.command()
    def fail() -> None:
        raise error

    return small


@pytest.mark.parametrize(("kind", "code"), [(ClimateFileError, 1), (ConfigurationError, 2)])
def test_error_raised_on_purpose_is_one_line_with_its_exit_code(kind, code):
    error = kind(
        "file.nc", expected="a climate file", received="text\nover two lines", remedy="Check the path."
    )
    result = runner.invoke(_app_raising(error), ["fail"])
    line = _one_line_error(result, code)
    assert line == "error: file.nc: expected a climate file; received text over two lines. Check the path."


def test_a_bug_keeps_its_traceback():
    result = runner.invoke(_app_raising(ZeroDivisionError("bug")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_interruption_exits_130():
    assert runner.invoke(_app_raising(KeyboardInterrupt()), ["fail"]).exit_code == 130


def test_json_holds_whatever_results_hold(capsys):
    @dataclasses.dataclass
    class Row:
        values: np.ndarray
        time: np.datetime64
        path: Path

    row = Row(np.array([1.5, np.nan]), np.datetime64("2026-03-29T12:00"), Path("a/b"))
    handler.print_json({"row": row, "infinite": float("inf"), "count": np.int64(3), "name": "Ny-Ålesund"})
    assert json.loads(capsys.readouterr().out) == {
        "row": {"values": [1.5, None], "time": "2026-03-29T12:00", "path": "a/b"},
        "infinite": None,
        "count": 3,
        "name": "Ny-Ålesund",
    }


def test_json_refuses_what_it_cannot_hold():
    with pytest.raises(TypeError, match="no JSON form for object"):
        handler.print_json({"it": object()})


def test_train_refuses_an_unknown_key_before_anything_is_written(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("training:\n  learning_rat: 1e-3\n")
    line = _one_line_error(runner.invoke(app, ["train", str(config), "--output", str(tmp_path / "run")]), 2)
    assert "learning_rat" in line
    assert "learning_rate" in line  # the nearest name
    assert not (tmp_path / "run").exists()


def test_train_refuses_a_missing_configuration(tmp_path):
    _one_line_error(runner.invoke(app, ["train", str(tmp_path / "none.yaml")]), 2)


def test_train_hands_over_the_configuration(tmp_path, monkeypatch):
    seen = {}
    pipeline = types.ModuleType("climafuse.training.pipeline")

    def run(config, *, resume, dry_run, auto_batch):
        seen.update(config=config, resume=resume, dry_run=dry_run, auto_batch=auto_batch)
        return {"steps": config.training.steps}

    pipeline.run = run
    monkeypatch.setitem(sys.modules, "climafuse.training.pipeline", pipeline)
    arguments = [
        "train",
        "--set",
        "training.steps=30",
        "--output",
        str(tmp_path / "a b"),
        "--dry-run",
        "--json",
    ]
    result = runner.invoke(app, arguments)
    assert json.loads(result.stdout) == {"steps": 30}
    assert seen["config"].output.directory == str(tmp_path / "a b")
    assert seen["dry_run"]
    assert not seen["auto_batch"]
    assert not seen["resume"]


def test_a_dry_run_prints_the_accumulation_that_was_chosen(monkeypatch):
    """What is printed is a configuration to train with, microbatches included."""
    pipeline = types.ModuleType("climafuse.training.pipeline")
    pipeline.run = lambda config, **options: {"accumulation": 4}
    monkeypatch.setitem(sys.modules, "climafuse.training.pipeline", pipeline)
    result = runner.invoke(
        app, ["train", "--set", "training.windows_per_step=8", "--dry-run", "--auto-batch"]
    )
    printed = yaml.safe_load(result.stdout)
    assert (printed["training"]["windows_per_step"], printed["training"]["accumulation"]) == (8, 4)


@pytest.fixture
def inference(monkeypatch):
    """A model that always says the same, about 10 °C, 1013.25 hPa and a west wind of 8 m/s everywhere."""
    fields = np.zeros((1, 4, 4, 4), dtype="float32")
    for index, value in enumerate((283.15, 101325, 8.0, 0.0)):
        fields[0, index] = value
    coordinate = np.arange(4.0)
    time = np.array(["2026-03-29T12:00"], dtype="datetime64[s]")
    window = Window(fields, ("t2m", "msl", "u10", "v10"), time, coordinate, coordinate)
    answer = types.SimpleNamespace(
        prompt="Describe the weather.",
        text="Mean temperature 10 °C. Mean dew point 5 °C. Mean pressure 990 hPa.",
        window=window,
        place=Place("Paris", "FR", 1.0, 2.0),
        attention=(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.array([0.5, 0.5])),
        attended=(("t2m mean", 0.5),),
    )
    module = types.ModuleType("climafuse.model.inference")
    identity = {"id": "tiny-random", "random_weights": True}
    module.load_model = lambda path: types.SimpleNamespace(
        model=types.SimpleNamespace(backbone_identity=identity)
    )
    module.answer = lambda model, climate, **options: answer
    monkeypatch.setitem(sys.modules, "climafuse.model.inference", module)
    return ["infer", "model", "--climate", "fields.nc", "--time", "2026-03-29T12:00"]


def test_infer_sets_what_is_said_beside_what_the_fields_say(inference):
    result = runner.invoke(app, inference)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "backbone: tiny-random, random weights, for capacity only"
    assert lines[1] == "Paris, FR, box 0.5°S to 3.5°N, 0.5°W to 3.5°E, 2026-03-29T12:00"
    assert lines[3].startswith("Mean temperature 10 °C.")
    assert "mean temperature 10 °C 10 °C right" in lines
    assert "mean pressure 990 hPa 1013 hPa wrong" in lines
    assert "mean dew point 5 °C – not in the fields" in lines


HOSTILE = "10 \u00b0C\x1b[2J\x1b]0;owned\x07\u202e \x9b31m\r\x7f\u2028 \U000e0001"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_a_model_says_does_not_move_the_cursor(inference, options):
    found = sys.modules["climafuse.model.inference"].answer(None, None)
    found.text = f"{HOSTILE}\nMean temperature 10\u202f\u00b0C."
    found.attended = ((HOSTILE, 0.5),)
    result = runner.invoke(app, [*inference, *options])
    assert result.exit_code == 0, result.output
    assert not [c for c in result.stdout if not c.isprintable() and c not in "\n\u202f"]
    if options:
        assert json.loads(result.stdout)["answer"] == found.text
    else:
        assert (
            r"10 \u00b0C\x1b[2J\x1b]0;owned\x07\u202e \x9b31m\r\x7f\u2028 \U000e0001".replace(
                r"\u00b0", "\u00b0"
            )
            in result.stdout
        )


def test_a_cell_of_a_table_is_one_printable_line(capsys):
    handler.print_table([("a\x1b[31m\nb", None)], header=("one", "two"))
    assert capsys.readouterr().out.splitlines()[1:] == [r"a\x1b[31m\nb  \u2013".replace(r"\u2013", "\u2013")]


def test_infer_as_json_with_a_map(inference, tmp_path):
    result = runner.invoke(app, [*inference, "--json", "--map", str(tmp_path / "map.png")])
    found = json.loads(result.stdout)
    assert [fact["right"] for fact in found["facts"]] == [True, None, False]
    assert found["backbone"] == {"id": "tiny-random", "random_weights": True}
    assert found["place"] == "Paris, FR"
    assert found["time"] == "2026-03-29T12:00"
    assert found["map"] == str(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000


@pytest.fixture
def climate_file(tmp_path):
    """Ten six-hourly steps on a 10° grid; temperature is 10 °C + the step, with one cell missing."""
    time = np.datetime64("2026-03-01T00", "ns") + np.arange(10) * np.timedelta64(6, "h")
    latitude, longitude = np.arange(-80.0, 81.0, 10.0), np.arange(0.0, 360.0, 10.0)
    shape = (len(time), len(latitude), len(longitude))
    temperature = np.broadcast_to(283.15 + np.arange(10)[:, None, None], shape).astype("float32").copy()
    temperature[-1, 0, 0] = np.nan
    dims = ("time", "latitude", "longitude")
    xr.Dataset(
        {
            "t2m": (dims, temperature, {"units": "K"}),
            "msl": (dims, temperature * 350, {"units": "Pa"}),
        },
        coords={"time": time, "latitude": latitude, "longitude": longitude},
    ).to_netcdf(tmp_path / "fields.nc")
    return tmp_path / "fields.nc"


def test_data_inspect(climate_file):
    found = json.loads(runner.invoke(app, ["data", "inspect", str(climate_file), "--json"]).stdout)
    assert found["dimensions"]["time"] == {
        "size": 10,
        "first": "2026-03-01T00:00",
        "last": "2026-03-03T06:00",
        "spacing": "6 h",
    }
    assert found["dimensions"]["latitude"]["spacing"] == "10°"
    row = {row["name"]: row for row in found["variables"]}["t2m"]
    assert row["units"] == "K"
    # 10 °C + 9 steps at the last time, everywhere; 1 of 17 x 36 cells missing.
    assert row["minimum"] == pytest.approx(292.15)
    assert row["mean"] == pytest.approx(292.15)
    assert row["missing"] == pytest.approx(1 / (17 * 36))
    table = runner.invoke(app, ["data", "inspect", str(climate_file), "--variable", "msl"])
    assert table.exit_code == 0
    assert "mean sea level pressure" in table.stdout
    assert "t2m" not in table.stdout


def test_data_describe_writes_pairs_that_read_back(climate_file, tmp_path):
    output = tmp_path / "pairs.jsonl"
    arguments = ["data", "describe", str(climate_file), str(output), "--windows", "5", "--box-degrees", "40"]
    result = runner.invoke(app, [*arguments, "--kind", "mean/t2m", "--abstentions", "0", "--json"])
    assert result.exit_code == 0, result.output
    pairs = read_pairs(output)
    assert json.loads(result.stdout) == {"output": str(output), "pairs": len(pairs), "windows": 5}
    assert len(pairs) == 5 * 4
    for pair in pairs:
        # The field is even: the mean in °C is 10 + the step, 6 hours each.
        step = (pair.times[1] - np.datetime64("2026-03-01T00", "s")) / np.timedelta64(6, "h")
        assert pair.facts[0]["value"] == pytest.approx(10 + step, abs=1e-3)
        assert f"{10 + step:.0f}" in pair.text


def test_data_prepare(climate_file, tmp_path):
    arguments = ["data", "prepare", str(climate_file), str(tmp_path / "store"), "--gap-hours", "6", "--json"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["variables"] == ["t2m", "msl"]
    files = [path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert made["bytes"] == sum(files)
    assert made["times_a_second"] == pytest.approx(sum(made["times"].values()) / made["seconds"], rel=0.5)
    assert 0.05 < made["peak_memory_gb"] < 50
    again = runner.invoke(app, arguments)
    assert "does not exist yet" in _one_line_error(again, 2)


def test_data_prepare_with_periods_and_rebased_anomalies(tmp_path):
    command = ["data", "prepare", "sst_anomaly", str(tmp_path / "store"), "--anomalies", "month", "--json"]
    periods = ["--train", "1979-01/2004-12", "--validation", "2005-04/2006-10", "--test", "2007-01/2013-12"]
    result = runner.invoke(app, [*command, *periods])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["times"] == {"train": 312, "validation": 19, "test": 84}
    for wrong, message in (
        (["--train", "1979-01"], "--train"),
        (periods[:4], "for each of train, validation, test"),
        ([*periods, "--anomalies", "year"], "one of month, all"),
    ):
        result = runner.invoke(app, ["data", "prepare", "sst_anomaly", str(tmp_path / "other"), *wrong])
        assert result.exit_code == 2
        assert message in result.output
        assert not (tmp_path / "other").exists()


def test_data_prepare_goes_on_where_it_stopped_and_says_so(climate_file, tmp_path, monkeypatch):
    arguments = ["data", "prepare", str(climate_file), str(tmp_path / "store"), "--gap-hours", "6"]
    with monkeypatch.context() as patch:
        patch.setattr(
            store, "_write_manifest", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
        )
        result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert "No space left. Make room and repeat the command" in result.stderr.splitlines()[-1]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"going on from (\d+) of \1 times written", result.stderr)
    assert re.search(r"0 pairs\n\S+ GB in \d+ s, \S+ times a second; at most \S+ GB of memory", result.stdout)


def test_data_describe_takes_a_training_store_for_its_source(climate_file, tmp_path):
    runner.invoke(app, ["data", "prepare", str(climate_file), str(tmp_path / "store"), "--gap-hours", "6"])
    options = ["--windows", "5", "--history", "2", "--box-degrees", "30"]
    written = []
    for number, (source, more) in enumerate(
        ((climate_file, []), (tmp_path / "store", []), (tmp_path / "store", ["-v", "t2m", "-v", "msl"]))
    ):
        output = tmp_path / f"{number}.jsonl"
        result = runner.invoke(app, ["data", "describe", str(source), str(output), *options, *more])
        assert result.exit_code == 0, result.output
        assert "5 of 5 windows" in result.stderr
        written.append(output.read_text())
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["inspect", "none.nc"], 1, "none.nc"),
        (["inspect", "{file}", "--variable", "sst"], 1, "sst"),
        (["inspect", "{truncated}"], 1, "truncated.nc"),
        (["describe", "{file}", "pairs.txt"], 2, "pairs.txt"),
        (["prepare", "{file}", "{folder}/store", "--pairs", "{malformed}"], 1, "line 1"),
    ],
)
def test_data_refusals_are_one_line_and_leave_nothing(arguments, code, words, climate_file, tmp_path):
    truncated, malformed, folder = tmp_path / "truncated.nc", tmp_path / "bad.jsonl", tmp_path / "work"
    truncated.write_bytes(climate_file.read_bytes()[:2000])
    malformed.write_text('{"time": "2026-03-01T00:00"}\n')
    folder.mkdir()
    names = {"file": climate_file, "truncated": truncated, "malformed": malformed, "folder": folder}
    with contextlib.chdir(folder):
        result = runner.invoke(app, ["data", *(argument.format(**names) for argument in arguments)])
    assert words in _one_line_error(result, code)
    assert list(folder.iterdir()) == []


def test_backbone_list_as_table_and_json(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path))
    table = runner.invoke(app, ["backbone", "list"])
    assert table.exit_code == 0
    rows = json.loads(runner.invoke(app, ["backbone", "list", "--json"]).stdout)
    assert rows
    assert all(row["path"] is None for row in rows)  # an empty cache
    assert all(row["id"] in table.stdout for row in rows)


def test_backbone_import_of_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path / "home"))
    line = _one_line_error(
        runner.invoke(app, ["backbone", "import", str(tmp_path / "none.gguf"), "--name", "mine"]), 1
    )
    assert "none.gguf" in line


def test_doctor_reports_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIMAFUSE_HOME", str(tmp_path))
    result = runner.invoke(app, ["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert checks["device"]["ok"]
    assert checks["samples"]["ok"], checks["samples"]
    assert not checks["default backbone"]["ok"]  # the cache is empty
    assert "backbone fetch" in checks["default backbone"]["remedy"]
    assert result.exit_code == 1


def test_random_weights_are_labeled_and_others_are_not(capsys):
    from climafuse.cli.handler import print_weights

    print_weights({"id": "llama-3-8b-random", "random_weights": True})
    assert capsys.readouterr().out == "backbone: llama-3-8b-random, random weights, for capacity only\n"
    print_weights({"id": "smollm2", "random_weights": False})
    assert capsys.readouterr().out == ""


def test_pictures_tell_random_weights(inference, tmp_path, monkeypatch):
    captions = []
    monkeypatch.setattr("climafuse.report.maps.draw_map", lambda *_, caption, **__: captions.append(caption))
    assert runner.invoke(app, [*inference, "--map", str(tmp_path / "map.png")]).exit_code == 0
    assert captions[0].endswith("990 hPa. (random weights, for capacity only)")
