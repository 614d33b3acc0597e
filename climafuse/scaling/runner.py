"""Runs a study: one run after the other, each in its own process, none twice.

What is done stands in the output folder, so a study that was stopped, even by SIGKILL, goes on when it is started
again: `runs/ID/result.json` for each finished or failed run, and `results.json` for all of them. Runs do not share a
machine with each other: their times are compared.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from climafuse.data.files import whole_file
from climafuse.data.lock import alone
from climafuse.errors import OutputError, RunInterruptedError
from climafuse.json_file import read_object
from climafuse.manifest import machine, versions
from climafuse.scaling.records import RESULT_FILE, RESULTS_FILE, read_result, read_results
from climafuse.scaling.study import FORMAT, PlannedRun, Study, figure, most_runs, plain, plan
from climafuse.scaling.worker import ATTENDED, CONFIG_FILE, FIGURES_FILE

WORKER = (sys.executable, "-m", "climafuse.scaling.worker")
LOG_FILE = "worker.log"
TICK = 1.0  # seconds between looks at a run
GRACE = 90.0  # seconds in which a run that is told to end may save
Say = Callable[[str], None]


@dataclass(frozen=True)
class Moment:
    """How far a study is.

    Args:
        done: Runs that are done.
        total: Runs there will be.
        label: The run that is going on.
        seconds: How long it has been going on.
        seconds_left: Of the study, by the runs before; None before the first.
    """

    done: int
    total: int
    label: str
    seconds: float
    seconds_left: float | None


def run_study(
    study: Study,
    output: str | Path,
    *,
    worker: Sequence[str] = WORKER,
    retry: bool = False,
    say: Say,
    progress: Callable[[Moment], None] | None = None,
) -> dict[str, Any]:
    """Run what is not done yet, stage by stage.

    Args:
        study: The study.
        output: Its folder.
        worker: Command of a run, given its folder; see `climafuse.scaling.worker`.
        retry: Run failed runs again, once.
        say: Told one line at each run.
        progress: Told about every second how far the study is.

    Returns:
        What `results.json` holds.

    Raises:
        UsageError: Another process runs a study in that folder.
        OutputError: The folder holds another study.
        CheckpointError: What an earlier call left in it is damaged.
        RunInterruptedError: SIGTERM; the run that was going on has saved, and goes on when the study does.
        KeyboardInterrupt: Ctrl-C; the same.
    """
    folder = Path(output)
    with alone(folder / ".lock"):
        _check_output(folder, study)
        with _Signals() as signals:
            return _Runner(study, folder, tuple(worker), say, progress, signals).run_all(retry)


def _check_output(folder: Path, study: Study) -> None:
    if (folder / RESULTS_FILE).is_file():
        name = read_results(folder)["study"]["name"]
        if name != study.name:
            raise OutputError(
                str(folder),
                expected=f"a new folder, or that of study {study.name!r}",
                received=f"that of study {name!r}",
                remedy="Choose another folder with --output.",
            )


class _Runner:
    def __init__(
        self,
        study: Study,
        folder: Path,
        worker: tuple[str, ...],
        say: Say,
        progress: Callable[[Moment], None] | None,
        signals: _Signals,
    ) -> None:
        self.study, self.folder, self.worker = study, folder, worker
        self.say, self.progress, self.signals = say, progress, signals
        self.total = most_runs(study)
        self.records: dict[str, dict[str, Any]] = {}

    def run_all(self, retry: bool) -> dict[str, Any]:
        """Until no run is left; what comes next is read off what is done."""
        self.records = self._recorded()
        if retry:
            self.records = {
                id: record for id, record in self.records.items() if record["status"] == "finished"
            }
        while True:
            runs = plan(self.study, {id: record.get("figures") for id, record in self.records.items()})
            left = [run for run in runs if run.id not in self.records]
            results = self._write(runs, complete=not left)
            if not left:
                return results
            record = self._run(left[0], len(runs) - len(left))
            _write_json(self._place(left[0]) / RESULT_FILE, record)
            self.records[left[0].id] = record
            self.say(f"{left[0].label}: {self._outcome(record)}")
            if self.signals.received:
                self.signals.end(self.folder)

    def _recorded(self) -> dict[str, dict[str, Any]]:
        """What is done, of this study or of an earlier form of it."""
        found = {}
        for path in sorted((self.folder / "runs").glob(f"*/{RESULT_FILE}")):
            record = read_result(path)
            if record is not None:
                found[path.parent.name] = record
        return found

    def _place(self, run: PlannedRun) -> Path:
        return self.folder / "runs" / run.id

    def _write(self, runs: Sequence[PlannedRun], *, complete: bool) -> dict[str, Any]:
        results = {
            "format": FORMAT,
            "study": plain(self.study),
            "complete": complete,
            "num_planned": len(runs) if complete else self.total,
            "date": _now(),
            "machine": machine(),
            "versions": versions(("torch", "transformers")),
            "runs": [self.records[run.id] for run in runs if run.id in self.records],
        }
        _write_json(self.folder / RESULTS_FILE, results)
        return results

    def _run(self, run: PlannedRun, done: int) -> dict[str, Any]:
        folder = self._place(run)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / CONFIG_FILE) as temporary:
            temporary.write_text(run.config.to_yaml(), encoding="utf-8")
        (folder / FIGURES_FILE).unlink(missing_ok=True)
        (folder / RESULT_FILE).unlink(missing_ok=True)  # of an attempt that failed
        self.say(f"[{done + 1} of {self.total}] {run.label}: {folder}")
        begin = time.monotonic()
        code = self._work(run, folder, done, begin)
        record = {
            "format": FORMAT,
            "id": run.id,
            "stage": run.stage,
            "label": run.label,
            "settings": plain(run.settings),
            "status": "failed",
            "exit_code": code,
            "seconds": time.monotonic() - begin,
            "date": _now(),
        }
        if code:
            return {**record, "why": _last_line(folder / LOG_FILE)}
        try:
            return {**record, "status": "finished", "figures": read_object(folder / FIGURES_FILE)}
        except (OSError, ValueError) as error:
            return {**record, "why": f"no figures: {error}"}

    def _work(self, run: PlannedRun, folder: Path, done: int, begin: float) -> int:
        """The exit code of a run's process; none of ours outlives this call."""
        with (folder / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [*self.worker, str(folder), ATTENDED],
                stdin=subprocess.PIPE,  # it closes when this process dies, and the run ends, too
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process; the run is told to save
            )
        try:
            while True:
                try:
                    code = process.wait(timeout=TICK)
                    break
                except subprocess.TimeoutExpired:
                    if self.progress is not None:
                        self.progress(self._moment(run, done, time.monotonic() - begin))
                if self.signals.received:
                    self._end(process)
            # A run that somebody else told to end has saved: the study has been interrupted, too.
            if code and (self.signals.received or code == RunInterruptedError.exit_code):
                self.signals.end(self.folder)
            return code
        finally:
            if process.poll() is None:
                _kill(process)
            if process.stdin is not None:
                process.stdin.close()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        until = time.monotonic() + GRACE
        while process.poll() is None and time.monotonic() < until and not self.signals.insisted:
            time.sleep(0.05)
        if process.poll() is None:
            _kill(process)

    def _moment(self, run: PlannedRun, done: int, seconds: float) -> Moment:
        known = [record["seconds"] for record in self.records.values() if record["status"] == "finished"]
        left = None
        if known:
            each = sum(known) / len(known)
            left = each * (self.total - done - 1) + max(each - seconds, 0.0)
        return Moment(done, self.total, run.label, seconds, left)

    def _outcome(self, record: Mapping[str, Any]) -> str:
        if record["status"] == "failed":
            return f"failed ({record['why']})"
        value = figure(record["figures"], self.study.metric)
        return (
            f"{self.study.metric} {'–' if value is None else format(value, '.4f')}, {record['seconds']:.0f} s"
        )


class _Signals:
    """Notes SIGTERM and Ctrl-C; only the main thread may, elsewhere nothing is changed."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.insisted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: Any) -> None:
        self.insisted = self.received is not None
        self.received = signal.Signals(number)

    def end(self, folder: Path) -> None:
        """Raise what tells that the study was stopped."""
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt(f"the same command goes on where the study in {folder} was stopped.")
        raise RunInterruptedError(
            self.received.name if self.received else "a signal to a run",
            expected="all runs of the study",
            received="a request to end",
            remedy=f"The same command goes on where the study in {folder} was stopped.",
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """A run and what it has started."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:500] if said else "it said nothing"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
