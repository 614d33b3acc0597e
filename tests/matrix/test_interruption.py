"""A run that is killed at any moment and resumed is the uninterrupted one, bit for bit.

Real processes are killed with SIGKILL at a chosen point (`tests/training/forks.py`), resumed with `--resume`,
killed again, and resumed to the end. Then every file of every checkpoint, of the model and of the log is
compared with that of a run that nothing interrupted, byte for byte but for the times in it; and so are the
samples and the loss of every microbatch that any of the processes took. Dropout, the sampled vocabulary and
label thinning are on throughout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.forks import MOMENTS, ORDER_FILE, Forks
from tests.training.runs import save_backbone, settings, write_climate

STEPS = 8
# Steps between checkpoints. 9 windows, 3 a step: after 3 and 6 an epoch ends, 2 and 4 are in the middle of one.
INTERVALS = {"boundary": 3, "mid-epoch": 2}
FUSIONS: dict[str, dict[str, Any]] = {
    "cross_attention": {"options": {"heads": 2, "head_width": 8, "feed_forward": 16}, "sites": [2, "output"]},
    "gated_addition": {"options": {}, "sites": ["output"]},
}


@dataclass(frozen=True)
class Case:
    """One configuration of the grid."""

    fusion: str = "cross_attention"
    accumulation: int = 1
    position: str = "mid-epoch"
    reuse: bool = True

    @property
    def interval(self) -> int:
        return INTERVALS[self.position]

    def step_of(self, moment: str) -> int:
        """The step at which a moment comes: after the first checkpoint and in another epoch than the first."""
        if moment == "logging":
            return 5
        if MOMENTS[moment] == "mid-step" and moment != "evaluating":
            return 2 * self.interval + 1
        return 2 * self.interval

    def order_of(self, moment: str) -> tuple[int, int]:
        """Moments sorted by this come one after another, each in a process that the one before left to resume."""
        order = ("evaluating", "writing", "rotating", "mid-step", "logging", "model")
        place = order.index(moment if moment == "evaluating" else MOMENTS[moment])
        return (STEPS if moment == "writing the model" else self.step_of(moment)), place

    def content(self, place: Path, workers: int) -> dict[str, Any]:
        content = settings(place / "fields.nc", place / "backbone", Path("run"))
        content["data"] |= {"train_windows": 9}
        content["encoder"]["options"] |= {"dropout": 0.2}
        content["fusion"] = {"name": self.fusion, **FUSIONS[self.fusion]}
        content["training"] |= {
            "steps": STEPS,
            "windows_per_step": 3,
            "accumulation": self.accumulation,
            "evaluation_interval": self.interval,
            "logging_interval": 5,  # neither a multiple nor a divisor of the checkpoints'
            "reuse_prefix": self.reuse,
            "workers": workers,
        }
        content["output"] |= {"save_interval": self.interval, "keep_checkpoints": 1}
        return content


CASES = [
    Case(fusion, accumulation, position)
    for fusion, accumulation, position in product(FUSIONS, (1, 3), INTERVALS)
]
SPAWNED = (CASES[1], CASES[6])


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_climate(folder / "fields.nc")
    save_backbone(folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(forks: Forks, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of an uninterrupted run of a case; made once."""
    made: dict[Case, Path] = {}

    def make(case: Case) -> Path:
        if case not in made:
            folder = tmp_path_factory.mktemp("whole")
            assert start(forks, folder, place, case, workers=0) == 0, (folder / "stderr").read_text()
            made[case] = folder
        return made[case]

    return make


def start(forks: Forks, folder: Path, place: Path, case: Case, workers: int, **plan: Any) -> int:
    # Starting loaders as users do takes most of a run's time, and two cases show that it makes no difference.
    plan.setdefault("spawn", workers and case in SPAWNED)
    (folder / "run.yaml").write_text(yaml.safe_dump(case.content(place, workers)))
    arguments = ["train", "run.yaml", "--resume"] if (folder / "run").exists() else ["train", "run.yaml"]
    return forks.run(folder, arguments, **plan)


# ---- What is compared ----------------------------------------------------------------------------------------


def is_time(key: str) -> bool:
    return key in ("seconds", "peak_memory_gb") or key.endswith(("_runtime", "_per_second"))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if not is_time(key)}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def content_of(path: Path) -> Any:
    """What two runs must agree on: all of a file, but for times and the number of loader processes."""
    if path.name == "log.jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "manifest.json":
        manifest = json.loads(path.read_text())
        return manifest["kind"], manifest["details"], sorted(manifest["files"])
    if path.name in ("training_state.json", "trainer_state.json"):
        content = without_times(json.loads(path.read_text()))
        content.get("settings", {}).pop("training.workers", None)
        return content
    if path.name == "run.json":
        content = json.loads(path.read_text())
        return {key: value for key, value in content.items() if key not in ("date", "train_seconds")}
    if path.name == "run.yaml":
        return [line for line in path.read_text().splitlines() if "workers:" not in line]
    return path.read_bytes()


def assert_same(folder: Path, whole: Path) -> None:
    """Every file of a finished run, and every microbatch that was taken on the way."""
    names = [
        {path.relative_to(run).as_posix() for path in (run / "run").rglob("*")} for run in (folder, whole)
    ]
    assert names[0] == names[1]
    for name in sorted(names[1]):
        if (whole / name).is_file():
            assert content_of(folder / name) == content_of(whole / name), name
    taken = [
        [json.loads(line) for line in (run / ORDER_FILE).read_text().splitlines()] for run in (folder, whole)
    ]
    expected = {(line["step"], line["microbatch"]): line for line in taken[1]}
    for line in taken[0]:  # those taken twice, too
        assert line == expected[line["step"], line["microbatch"]]
    assert {(line["step"], line["microbatch"]) for line in taken[0]} == expected.keys()


def kill(forks: Forks, folder: Path, place: Path, case: Case, moment: str, workers: int = 0) -> None:
    step = case.step_of(moment)
    if moment == "between two renames":
        # A checkpoint is replaced where the run comes by a damaged one again.
        assert start(forks, folder, place, case, workers, kill=("before rotating", step)) == -9
        damaged = folder / "run" / f"checkpoint-{step}" / "optimizer.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-1])
    assert start(forks, folder, place, case, workers, kill=(moment, step)) == -9, said(folder)


def finish(forks: Forks, folder: Path, place: Path, case: Case, workers: int = 0) -> None:
    assert start(forks, folder, place, case, workers) == 0, said(folder)
    assert "resume: going on from run/checkpoint-" in said(folder)


def said(folder: Path) -> str:
    return (folder / "stderr").read_text()


# ---- The matrix ----------------------------------------------------------------------------------------------


def record(cell: Any, case: Case, workers: int, moment: str) -> None:
    row = f"{case.fusion}, accumulation {case.accumulation}, {workers} workers, {case.position}"
    cell("interruption", row, MOMENTS[moment])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    thorough = metafunc.config.option.thorough
    if "moment" in metafunc.fixturenames:
        # Half of the moments without stored states, which take another way through the model.
        every = [
            (replace(case, reuse=number % 2 == 0), moment)
            for case in CASES
            for number, moment in enumerate(MOMENTS)
        ]
        some = [(CASES[2], "after the optimizer")]
        names = "{0.fusion}-{0.accumulation}-{0.position}-{1}"
        chosen = every if thorough else some
        metafunc.parametrize(("case", "moment"), chosen, ids=[names.format(*pair) for pair in chosen])
    elif {"case", "signals"} <= set(metafunc.fixturenames):
        chosen = [(CASES[2], 0, "SIGTERM")]
        if thorough:
            chosen += [(case, 0, "SIGTERM") for case in CASES if case != CASES[2]]
            chosen += [(CASES[1], 0, "SIGUSR1"), (CASES[5], 2, "SIGTERM"), (CASES[6], 2, "SIGTERM")]
        metafunc.parametrize(("case", "workers", "signals"), chosen)
    elif "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(len(CASES)) if thorough else [])


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(
    forks: Forks, place: Path, tmp_path: Path, uninterrupted: Any, cell: Any, case: Case, moment: str
) -> None:
    record(cell, case, 0, moment)
    whole = uninterrupted(case)
    kill(forks, tmp_path, place, case, moment)
    finish(forks, tmp_path, place, case)
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_killed_thrice_with_loader_processes(
    forks: Forks, place: Path, tmp_path: Path, uninterrupted: Any, cell: Any, number: int
) -> None:
    """The result does not depend on how many processes load data: it is that of a run that has none."""
    case = CASES[number]
    kinds: dict[str, list[str]] = {}
    for moment, kind in MOMENTS.items():
        kinds.setdefault(kind, []).append(moment)
    moments = [kinds[kind][number % len(kinds[kind])] for kind in ("writing", "rotating", "mid-step")]
    if number >= 6:
        moments.append(["logging", "writing the model"][number % 2])
    for moment in sorted(moments, key=case.order_of):
        record(cell, case, 2, moment)
        kill(forks, tmp_path, place, case, moment, workers=2)
    finish(forks, tmp_path, place, case, workers=2)
    assert_same(tmp_path, uninterrupted(case))


@pytest.mark.slow
def test_a_signal_saves_the_step_and_the_exit_code_says_so(
    forks: Forks,
    place: Path,
    tmp_path: Path,
    uninterrupted: Any,
    cell: Any,
    case: Case,
    workers: int,
    signals: str,
) -> None:
    row = f"{case.fusion}, accumulation {case.accumulation}, {workers} workers, {case.position}"
    cell("interruption", row, signals)
    step = 2 * case.interval + 1
    assert start(forks, tmp_path, place, case, workers, send=(signals, step)) == 75, said(tmp_path)
    line = said(tmp_path).splitlines()[-1]
    assert line.startswith(
        f"interrupted: {signals}: expected 8 steps; received a request to end at step {step}."
    )
    assert line.endswith(f"Go on from run/checkpoint-{step} with --resume.")
    assert not (tmp_path / "run" / "model").exists()
    finish(forks, tmp_path, place, case, workers)
    assert_same(tmp_path, uninterrupted(case))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "code", "last"),
    [
        ("SIGTERM SIGTERM", -15, ""),
        ("SIGINT", 130, "interrupted: run/checkpoint-4 is saved. Go on from it with --resume."),
    ],
)
def test_what_ends_a_run_at_once(
    forks: Forks, place: Path, tmp_path: Path, uninterrupted: Any, signals: str, code: int, last: str
) -> None:
    case = CASES[5]
    assert start(forks, tmp_path, place, case, workers=0, send=(signals, 5)) == code
    assert "Traceback" not in said(tmp_path)
    assert said(tmp_path).splitlines()[-1].startswith(last)
    finish(forks, tmp_path, place, case)
    assert_same(tmp_path, uninterrupted(case))
