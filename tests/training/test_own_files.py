"""What a command finds replaces nothing but what it may have found before. Oracle: lists of files made by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from climafuse.data.files import whole_file
from climafuse.errors import OutputError, UsageError
from climafuse.training.own_files import Result, check_result

FIGURES = '{\n "format": 1,\n "checkpoint": "runs/mine"\n}\n'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for folder in (
        "run/model",
        "run/checkpoint-8",
        "run/evaluation/controls/regressor/model",
        "run/tensorboard",
        "store/fields.zarr",
        "backbone",
        "elsewhere/evaluation",
    ):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("run/model", "run/checkpoint-8", "store"):
        name = "statistics.json" if folder == "store" else "config.json"
        for kept in ("manifest.json", name):
            (tmp_path / folder / kept).write_text('{"format": 1}')
    for name, content in (
        ("run/run.json", '{"backbone": {}}'),
        ("run/log.jsonl", '{"step": 1}\n'),
        ("run/metrics.json", FIGURES),
        ("run/figures.json", FIGURES),
        ("run/report.html", "\n<!DOCTYPE html>\n"),
        ("run/map.png", "\x89PNG\r\n\x1a\n"),
        ("run/tensorboard/events.1", "\x18\0"),
        ("run/evaluation/evaluation.json", FIGURES),
        ("elsewhere/evaluation/evaluation.json", FIGURES),
        ("backbone/config.json", '{"architectures": []}'),
        ("store/pairs.parquet", "PAR1"),
        ("fields.nc", "\x89HDF\r\n\x1a\n"),
        ("pairs.jsonl", '{"time": "2026-03-09", "text": "Warm."}\n'),
        ("pairs.csv", '"time","place","prompt","text"\n'),
        ("empty", ""),
    ):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    return tmp_path / "run"


@pytest.mark.parametrize(
    "name",
    [
        "run.json", "log.jsonl", "metrics.json", "evaluation/evaluation.json", "evaluation/mine.json",
        "evaluation/controls/regressor/model/mine.json", "model/config.json", "model/mine.json",
        "checkpoint-8/deep/mine.json", "../elsewhere/../run/run.json", "tensorboard/events.1", "report.html",
        "../fields.nc", "../pairs.jsonl", "../store/manifest.json", "../store/mine.json", "../backbone/config.json",
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused(run: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_result(run / name, "--json", Result.FIGURES)
    assert caught.value.argument == "--json"
    assert str(run / name) in str(caught.value.received)


@pytest.mark.parametrize(
    "name",
    ["figures.json", "new.json", "../run.json", "../elsewhere/evaluation/evaluation.json", "../empty"],
)
def test_figures_replace_figures_and_nothing(run: Path, name: str) -> None:
    check_result(run / name, "--json", Result.FIGURES)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (Result.FIGURES, {"run/figures.json"}),
        (Result.PAGE, {"run/report.html"}),
        (Result.PICTURE, {"run/map.png"}),
        (Result.PAIRS, {"pairs.jsonl", "pairs.csv"}),
    ],
)
def test_each_replaces_its_like_only(run: Path, result: Result, names: set[str]) -> None:
    """Of all files there but the empty one, and figures of no run."""
    replaced = set()
    for path in run.parent.rglob("*"):
        name = path.relative_to(run.parent).as_posix()
        if path.is_file() and name not in ("empty", "elsewhere/evaluation/evaluation.json"):
            try:
                check_result(path, "--output", result)
            except UsageError:
                continue
            replaced.add(name)
    assert replaced == names


def test_links_lead_to_what_would_be_lost(run: Path, tmp_path: Path) -> None:
    (run / "model").rename(tmp_path / "moved")
    (tmp_path / "link.json").symlink_to(run / "evaluation" / "evaluation.json")
    os.link(tmp_path / "fields.nc", tmp_path / "hard.json")
    (tmp_path / "mine.json").symlink_to(run / "figures.json")
    for path in (
        run / "run.json",
        tmp_path / "link.json",
        tmp_path / "hard.json",
        tmp_path / "moved/config.json",
    ):
        with pytest.raises(UsageError):
            check_result(path, "--json", Result.FIGURES)
    check_result(tmp_path / "mine.json", "--json", Result.FIGURES)


def test_no_pipe_or_device_is_waited_for_or_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises((UsageError, OutputError)):  # who may not write to /dev is told that
            check_result(path, "--json", Result.FIGURES)
    check_result(tmp_path / "loop", "--json", Result.FIGURES)
    with whole_file(tmp_path / "loop") as file:
        file.write_text(FIGURES)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "webp"])
def test_every_picture_that_is_drawn_may_be_drawn_again(tmp_path: Path, suffix: str) -> None:
    figure = Figure(figsize=(1, 1))
    path = tmp_path / f"map.{suffix}"
    figure.savefig(path)
    check_result(path, "--map", Result.PICTURE)


def test_not_all_xml_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "map.svg"
    path.write_text('<?xml version="1.0"?>\n<kml><Placemark/></kml>\n')
    with pytest.raises(UsageError, match="which holds something else"):
        check_result(path, "--map", Result.PICTURE)
