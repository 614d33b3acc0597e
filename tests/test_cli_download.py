"""`climafuse data download`: what it prints, how it ends, and that an interrupted run goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from climafuse.cli import download as commands
from climafuse.cli.app import app
from climafuse.cli.download import spoken_bytes
from tests.data.download.rigs import DAYS, KEY, Arco, Era5
from tests.data.download.server import serving

RANGE = ["--start", DAYS[0], "--end", DAYS[1]]


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["data", "download", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


@pytest.fixture
def arco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arco]:
    (tmp_path / "rig").mkdir()
    with serving() as server, serving() as other:
        yield Arco(server, other, tmp_path / "rig", monkeypatch)


@pytest.fixture
def era5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Era5]:
    (tmp_path / "rig").mkdir()
    with serving() as server, serving() as other:
        yield Era5(server, other, tmp_path / "rig", monkeypatch)


def test_arco_from_plan_to_files(arco: Arco, tmp_path: Path) -> None:
    call = ["arco", str(tmp_path / "data"), *RANGE, "-v", "t2m", "-v", "u10", "--store", arco.store]
    stdout, _ = run(*call, "--dry-run")
    assert "arco_20200228T0000-20200229T1800_" in stdout
    assert "1 file, about 534 kB; to fetch: about 534 kB" in stdout
    assert f"read for them: 16 chunks of {arco.store}, 468 kB before compression" in stdout
    assert not (tmp_path / "data").exists()

    stdout, stderr = run(*call)
    assert stdout.endswith("1 fetched, 0 were there\n")
    assert "(file 1 of 1): 470 kB of 470 kB" in stderr
    stdout, stderr = run(*call)
    assert stdout.endswith("0 fetched, 1 were there\n")
    done = json.loads(run(*call, "--json")[0])
    assert (done["fetched"], len(done["files"])) == (0, 1)
    assert Path(done["files"][0]).stat().st_size == done["bytes"]


def test_a_plan_for_programs(era5: Era5, tmp_path: Path) -> None:
    stdout, _ = run(
        *("era5", str(tmp_path / "data"), *RANGE, "-v", "t", "--level", "850", "--hours", "0,12"),
        *("--box", "48.9,2.3,16,16", "--grid", "1", "--split", "day", "--dry-run", "--json"),
    )
    plan = json.loads(stdout)
    assert [file["state"] for file in plan["files"]] == ["missing", "missing"]
    request = plan["files"][0]["source"]["request"]
    assert (request["time"], request["pressure_level"], request["grid"]) == (
        ["00:00", "12:00"],
        ["850"],
        [1, 1],
    )
    assert request["area"] == [56.9, -5.7, 40.9, 10.3]
    assert not era5.server.requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hours", "noon"], "--hours: expected hours of the day with commas between"),
        (["--box", "48.9,2.3"], "--box: expected four numbers"),
        (["--box", "148.9,2.3,1,1"], "box center"),
        (["--split", "year"], "split: expected month or day"),
        (["-v", "nonsense"], "variable 'nonsense'"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    code = 1 if "nonsense" in arguments else 2
    _, stderr = run("era5", str(tmp_path), *RANGE, "-v", "t2m", *arguments, code=code)
    assert message in stderr
    assert len(stderr.splitlines()) == 1


def test_an_interrupted_run_leaves_what_came_and_goes_on(era5: Era5, tmp_path: Path) -> None:
    """A real process, a real signal, in the middle of a file that stalls."""
    into = tmp_path / "data"
    call = ["era5", str(into), "--start", DAYS[0], "--end", DAYS[0], "-v", "t2m", "-v", "u10", "--grid", "3"]
    era5.states = ["successful"]
    era5.server.stalled = 30.0
    era5.server.faults[era5.path] = ["stall"]
    process = subprocess.Popen(
        [sys.executable, "-m", "climafuse", "data", "download", *call],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not any(path.stat().st_size for path in into.glob("*.part")):
            assert time.monotonic() < end, "no byte arrived"
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=30)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "the same command goes on from here" in stderr
    assert "Traceback" not in stderr
    assert KEY not in stderr
    (part,) = into.glob("*.part")
    have = part.stat().st_size
    stdout, _ = run(*call)
    assert "1 fetched" in stdout
    assert era5.server.asked(era5.path)[-1].headers["Range"] == f"bytes={have}-"
    assert list(era5.jobs) == ["job0"]


def test_the_line_of_a_terminal_tells_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock = [100.0]
    monkeypatch.setattr(commands.time, "monotonic", lambda: clock[0])
    for terminal, expected in ((Terminal(), 3), (io.StringIO(), 2)):
        monkeypatch.setattr(sys, "stderr", terminal)
        show = commands._transfer_line(["a.nc", "b.nc"])
        show("a.nc", 1_000_000, 9_000_000)
        clock[0] += 2
        show("a.nc", 3_000_000, 9_000_000)
        clock[0] += 6
        show("a.nc", 9_000_000, 9_000_000)
        lines = terminal.getvalue().replace("\r\033[K", "\n").strip().splitlines()
        assert len(lines) == expected
        if expected == 3:  # 2 MB in 2 s, so 6 s for the 6 MB left
            assert lines[1] == "a.nc (file 1 of 2): 3 MB of 9 MB, 1 MB/s, 6 s left"


def test_bytes_are_spoken_in_powers_of_ten() -> None:
    sizes = (0, 999, 1000, 392_456_789, 12_340_000_000, 31e12)
    assert [spoken_bytes(size) for size in sizes] == ["0 B", "999 B", "1 kB", "392 MB", "12.3 GB", "31 TB"]
