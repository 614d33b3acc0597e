"""Every operation on the disk fails once, and once it and all after it: what is left, and what is said.

    LD_PRELOAD=faults.so python -m tests.training.disk faults.so FOLDER WHAT ...

prints a JSON object a task and error: how many faults were tried, and what went wrong. `tests/matrix/test_disk.py`
runs it. The first faults are at the first operation, and so on until no fault fires: then all were tried.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from climafuse.errors import ClimafuseError
from climafuse.training.checkpoint import (
    checkpoint_path,
    newest_good_checkpoint,
    remove_unfinished,
    rotate_checkpoints,
    verify_checkpoint,
    write_folder,
)

ERRORS = ("ENOSPC", "EIO", "EROFS")


class Task:
    """Something that writes into `output`, what stood there before, and what must hold afterwards."""

    names_bytes = True
    stride = 1  # from one fault to the next, where there are very many alike

    def __init__(self, output: Path) -> None:
        self.output = output

    def prepare(self) -> None:
        """Bring about what stood there before."""

    def act(self) -> None:
        """Write."""
        raise NotImplementedError

    def intact(self) -> bool:
        """After an error, the disk still failing: whether what stood before, or all that is new, is whole."""
        raise NotImplementedError

    def done(self) -> bool:
        """After success: whether it is all there, and nothing else."""
        raise NotImplementedError

    def names(self) -> list[str]:
        return sorted(path.name for path in self.output.iterdir())


def _save(output: Path, step: int) -> Path:
    def write(folder: Path) -> None:
        for name in ("model", "state"):
            (folder / name).write_text(f"{name} of step {step}")

    path = checkpoint_path(output, step)
    return write_folder(path, write, kind="checkpoint", details={"step": step}, bytes_needed=500)


class Folder(Task):
    """A new checkpoint beside an older one."""

    def prepare(self) -> None:
        _save(self.output, 2)

    def act(self) -> None:
        remove_unfinished(self.output)
        _save(self.output, 4)

    def intact(self) -> bool:
        return newest_good_checkpoint(self.output) in [checkpoint_path(self.output, step) for step in (2, 4)]

    def done(self) -> bool:
        good = newest_good_checkpoint(self.output) == checkpoint_path(self.output, 4)
        return good and self.names() == ["checkpoint-2", "checkpoint-4"]


class Replaced(Folder):
    """A checkpoint in place of one of the same step."""

    def act(self) -> None:
        remove_unfinished(self.output)
        _save(self.output, 2)

    def intact(self) -> bool:
        # The disk may fail at putting the old one back, too: then that is done when the run is resumed.
        good = checkpoint_path(self.output, 2)
        return newest_good_checkpoint(self.output) == good or bool(
            verify_checkpoint(self.output / "tmp-replaced-checkpoint-2")
        )

    def done(self) -> bool:
        return newest_good_checkpoint(self.output) is not None and self.names() == ["checkpoint-2"]


class Rotation(Folder):
    """Older checkpoints let go."""

    names_bytes = False

    def prepare(self) -> None:
        for step in (1, 2, 3, 4):
            _save(self.output, step)

    def act(self) -> None:
        remove_unfinished(self.output)
        rotate_checkpoints(self.output, keep=2, newest=4)

    def done(self) -> bool:
        return self.names() == ["checkpoint-3", "checkpoint-4"]


class Log(Task):
    """Lines of a log, after those of a run that was resumed."""

    def prepare(self) -> None:
        from climafuse.training.callbacks import JsonLinesLog

        self.path = self.output / "log.jsonl"
        self.log = JsonLinesLog(self.path)
        self.path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')

    def act(self) -> None:
        self.write(2)
        for step in (3, 4):
            self.write(step)

    def write(self, step: int) -> None:
        from transformers.trainer_callback import TrainerControl, TrainerState

        call = self.log.on_train_begin if step == 2 else self.log.on_log
        call(None, TrainerState(global_step=step), TrainerControl())  # type: ignore[arg-type]

    def intact(self) -> bool:
        from climafuse.training.callbacks import read_log

        return [line["step"] for line in read_log(self.path)][:2] == [1, 2]

    def done(self) -> bool:
        from climafuse.training.callbacks import read_log

        return [line["step"] for line in read_log(self.path)] == [1, 2, 3, 4]


class TensorBoard(Task):
    """Event files."""

    def act(self) -> None:
        from transformers.trainer_callback import TrainerControl, TrainerState

        from climafuse.training.callbacks import TensorBoardLog

        log, state, control = TensorBoardLog(self.output), TrainerState(), TrainerControl()
        log.on_train_begin(None, state, control)  # type: ignore[arg-type]
        for step in (1, 2):
            log.on_log(None, TrainerState(global_step=step), control, {"loss": 1.0})  # type: ignore[arg-type]
        log.on_train_end(None, state, control)  # type: ignore[arg-type]

    def intact(self) -> bool:
        return True

    def done(self) -> bool:
        return bool(self.names())


class Run(Task):
    """A real trainer that saves its step 2 beside step 1."""

    trainer: Any = None

    def prepare(self) -> None:
        if Run.trainer is None:
            from climafuse.training.pipeline import assemble, make_trainer, prepare_reuse
            from tests.training.runs import make_config, save_backbone, write_climate

            place = self.output.with_name("place")
            place.mkdir()
            parts = write_climate(place / "fields.nc"), save_backbone(place / "backbone")
            training = {"steps": 2, "evaluation_interval": 1, "accumulation": 1}
            config = make_config(*parts, self.output, training=training)
            setup = assemble(config, say=lambda line: None)
            prepare_reuse(setup, say=lambda line: None)
            Run.trainer = make_trainer(setup, progress=False)
            shutil.rmtree(self.output)
            Run.trainer.train()
            Run.trainer.save_model()
            shutil.move(self.output, place / "run")
            self.output.mkdir()
        shutil.copytree(self.output.with_name("place") / "run", self.output, dirs_exist_ok=True)
        shutil.rmtree(self.output / "checkpoint-2")

    def act(self) -> None:
        remove_unfinished(self.output)
        self.trainer._save_checkpoint(self.trainer.model)

    def intact(self) -> bool:
        found = newest_good_checkpoint(self.output, with_best=False)
        return found in [checkpoint_path(self.output, step) for step in (1, 2)]

    def done(self) -> bool:
        newest = newest_good_checkpoint(self.output)
        return newest == checkpoint_path(self.output, 2) and self.names() == [
            "checkpoint-1", "checkpoint-2", "log.jsonl", "model",
        ]  # fmt: skip


class Model(Run):
    """A real model in place of an earlier one."""

    def prepare(self) -> None:
        super().prepare()
        shutil.copytree(self.output.with_name("place") / "run" / "checkpoint-2", self.output / "checkpoint-2")

    def act(self) -> None:
        remove_unfinished(self.output)
        self.trainer.save_model()

    def intact(self) -> bool:
        name = "model" if (self.output / "model").exists() else "tmp-replaced-model"
        return bool(verify_checkpoint(self.output / name))

    def done(self) -> bool:
        return self.intact() and not [name for name in self.names() if name.startswith("tmp-")]


class Store(Task):
    """A prepared store."""

    names_bytes = False  # room for all fields is looked for before anything is written
    stride = 11  # twenty steps, each written alike

    def prepare(self) -> None:
        from tests.training.runs import write_climate

        self.source = self.output.with_name("source.nc")
        if not self.source.exists():
            write_climate(self.source)

    def act(self) -> None:
        from climafuse.data.store import prepare

        prepare(self.source, self.output / "store", variables=["t2m", "msl"])

    def intact(self) -> bool:
        return not (self.output / "store").exists() or self.done()

    def done(self) -> bool:
        from climafuse.data.store import TrainingStore

        return len(TrainingStore.open(self.output / "store").time) == 20


TASKS: dict[str, type[Task]] = {
    "folder": Folder,
    "folder replaced": Replaced,
    "rotation": Rotation,
    "log": Log,
    "tensorboard": TensorBoard,
    "checkpoint": Run,
    "model": Model,
    "store": Store,
}


def attempts(library: ctypes.CDLL, task: Task, error: str) -> Iterator[list[str]]:
    """What went wrong at each fault; nothing, if all is as it must be."""
    for sticky in (0, 1):
        for number in itertools.count(1, task.stride):
            shutil.rmtree(task.output, ignore_errors=True)
            task.output.mkdir(parents=True)
            task.prepare()
            said = _attempt(library, task, error, number, sticky)
            if said is None:
                break
            yield [f"{error} at {number}{' and after' * sticky}: {line}" for line in said]


def _attempt(library: ctypes.CDLL, task: Task, error: str, number: int, sticky: int) -> list[str] | None:
    wrong = []

    def holds(what: str, check: Callable[[], bool]) -> None:
        try:
            good = check()
        except Exception as found:
            wrong.append(f"{what}: {type(found).__name__}: {found}")
        else:
            if not good:
                wrong.append(f"{what}: {task.names()}")

    library.fault_arm(str(task.output).encode(), ctypes.c_long(number), getattr(errno, error), sticky)
    raised: BaseException | None = None
    try:
        task.act()
    except BaseException as found:
        raised = found
    fired, added = library.fault_fired(), library.fault_added()
    if raised is None and added:
        wrong.append("no error was raised")
    if raised is not None:
        holds("not intact", task.intact)
    library.fault_disarm()
    if not fired and raised is None:
        holds("not done without a fault", task.done)
        return wrong or None
    if raised is not None:
        if not isinstance(raised, ClimafuseError):
            wrong.append(f"untyped: {type(raised).__name__}: {raised}")
        elif "\n" in str(raised) or (task.names_bytes and not re.search(r"\d bytes", str(raised))):
            wrong.append(f"said: {raised}")
        holds("not intact once the disk works", task.intact)
        try:
            task.act()
        except Exception as found:
            wrong.append(f"cannot be repeated: {type(found).__name__}: {found}")
    holds("not done", task.done)
    return wrong


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    if set(sys.argv[3:]) - {"folder", "folder replaced", "rotation"}:
        import torch

        torch.set_num_threads(1)
    for name in sys.argv[3:]:
        for error in ERRORS:
            found = list(attempts(library, TASKS[name](Path(sys.argv[2]) / "output"), error))
            wrong = [line for lines in found for line in lines]
            print(json.dumps({"task": name, "error": error, "cases": len(found), "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
