"""Real training processes that die at a chosen moment, forked from one that has imported everything.

    with Forks() as forks:
        code = forks.run(folder, ["train", ...], kill=("rename", 4))     # -9 if it was killed

A server (`server.py`) forks a process a run, which calls the command line as the `climafuse` script does. What kills it
is planted from here, by wrapping functions of the library and of Python: the library itself knows nothing of it. Each
run appends to `order.jsonl` which samples each microbatch held and what its loss was, to the last bit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.training.server import Server, fork, serve, wait, write_to

ORDER_FILE = "order.jsonl"
MOMENTS = {
    "before a microbatch": "mid-step",
    "in backward": "mid-step",
    "after the optimizer": "mid-step",
    "evaluating": "mid-step",
    "logging": "logging",
    "some files": "writing",
    "half a file": "writing",
    "before the manifest": "writing",
    "after the manifest": "writing",
    "before the rename": "writing",
    "after the rename": "writing",
    "between two renames": "writing",
    "before rotating": "rotating",
    "set aside": "rotating",
    "half deleted": "rotating",
    "writing the model": "model",
}


class Forks(Server):
    """The server, as a context."""

    def __init__(self) -> None:
        super().__init__("tests.training.forks")

    def run(
        self,
        folder: Path,
        arguments: list[str],
        *,
        kill: tuple[str, int] | None = None,
        send: tuple[str, int] | None = None,
        spawn: bool = True,
    ) -> int:
        """Run the command line in a folder; its output goes to `stdout` and `stderr` there.

        Args:
            folder: Where to run it.
            arguments: Of `climafuse`.
            kill: A moment, and the step at which the process kills itself there.
            send: Signals, separated by spaces, and the step in the middle of which all processes of the run, its
                loaders too, are sent them.
            spawn: Whether loader processes start as they do for users, which takes seconds each; else they are
                forked.

        Returns:
            Its exit code; minus the signal if it died of one.
        """
        return int(self.ask(folder=str(folder), arguments=arguments, kill=kill, send=send, spawn=spawn))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _record(plan: Callable[[Any, int], None]) -> None:
    """Notes order and losses; `plan(trainer, microbatch)` is told of each microbatch before it is run."""
    from climafuse.training.trainer import ClimateTextTrainer

    real = ClimateTextTrainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        number = len(self._losses)
        plan(self, number)
        loss = real(self, model, inputs, *args, **kwargs)
        samples = inputs["sample"].tolist()
        line = {
            "step": self.state.global_step + 1, "microbatch": number, "samples": samples,
            "loss": loss.item().hex(),
        }  # fmt: skip
        with open(ORDER_FILE, "a") as file:
            file.write(json.dumps(line) + "\n")
        return loss

    ClimateTextTrainer.training_step = training_step  # type: ignore[method-assign]


def _wrap(
    owner: Any,
    name: str,
    *,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
) -> None:
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args, **kwargs)
        result = real(*args, **kwargs)
        if after is not None:
            after(*args, **kwargs)
        return result

    setattr(owner, name, wrapped)


def _plant(moment: str, step: int) -> Callable[[Any, int], None]:
    """Arranges for the process to die; returns what to do before each microbatch."""
    import torch

    from climafuse.training import callbacks, checkpoint, trainer

    def of_step(path: Any, prefix: str = "tmp-checkpoint-") -> bool:
        return Path(path).name == f"{prefix}{step}"

    def die_if(condition: Callable[..., bool]) -> Callable[..., None]:
        return lambda *args, **kwargs: _die() if condition(*args, **kwargs) else None

    now: list[int] = [-1]

    def at_microbatch(training: Any, number: int) -> None:
        now[0] = training.state.global_step
        if training.state.global_step != step - 1:
            return
        if moment == "before a microbatch" and number == training.args.gradient_accumulation_steps - 1:
            _die()
        if moment == "in backward" and number == training.args.gradient_accumulation_steps - 1:
            training._trainable[0].register_hook(lambda gradient: _die())

    if moment == "after the optimizer":
        _wrap(torch.optim.AdamW, "step", after=die_if(lambda *a, **k: now[0] == step - 1))
    elif moment == "evaluating":
        condition = die_if(lambda self, *a, **k: self.state.global_step == step)
        _wrap(trainer.ClimateTextTrainer, "prediction_step", after=condition)
    elif moment == "logging":

        def half_a_line(self: Any, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                with self.path.open("a") as file:
                    file.write(f'{{"step": {step}, "lo')
                _die()

        _wrap(callbacks.JsonLinesLog, "on_log", before=half_a_line)
    elif moment == "some files":
        _wrap(trainer, "save_optimizer", before=die_if(lambda folder, *a: of_step(folder)))
    elif moment == "half a file":

        def half(folder: Path, content: Any) -> None:
            if of_step(folder):
                (folder / "training_state.json").write_text(json.dumps(content)[:100])
                _die()

        _wrap(trainer, "write_state", before=half)
    elif moment in ("before the manifest", "writing the model"):
        prefix = "tmp-checkpoint-" if moment == "before the manifest" else "tmp-model"
        condition = die_if(
            lambda folder, **k: of_step(folder) if prefix != "tmp-model" else folder.name == prefix
        )
        _wrap(checkpoint, "write_manifest", before=condition)
    elif moment == "after the manifest":
        _wrap(checkpoint, "write_manifest", after=die_if(lambda folder, **k: of_step(folder)))
    elif moment == "before the rename":
        _wrap(os, "rename", before=die_if(lambda source, target: of_step(source)))
    elif moment == "after the rename":
        _wrap(os, "rename", after=die_if(lambda source, target: of_step(source)))
    elif moment == "between two renames":
        condition = die_if(lambda source, target: of_step(target, "tmp-replaced-checkpoint-"))
        _wrap(os, "rename", after=condition)
    elif moment == "before rotating":
        _wrap(trainer, "rotate_checkpoints", before=die_if(lambda *a, newest, **k: newest == step))
    elif moment == "set aside":
        inside: list[int] = []
        _wrap(trainer, "rotate_checkpoints", before=lambda *a, newest, **k: inside.append(newest))
        _wrap(os, "rename", after=die_if(lambda *a: inside[-1:] == [step]))
    elif moment == "half deleted":
        turn: list[int] = []
        _wrap(trainer, "rotate_checkpoints", before=lambda *a, newest, **k: turn.append(newest))

        def half_deleted(path: Any, *args: Any, **kwargs: Any) -> None:
            if turn[-1:] == [step] and Path(path).is_dir():
                entries = sorted(Path(path).iterdir())
                for entry in entries[: len(entries) // 2]:
                    entry.unlink()
                _die()

        _wrap(checkpoint.shutil, "rmtree", before=half_deleted)
    return at_microbatch


def _send(names: str, step: int) -> Callable[[Any, int], None]:
    def at_microbatch(training: Any, number: int) -> None:
        if training.state.global_step == step - 1 and number == 0:
            for name in names.split():
                os.killpg(0, getattr(signal, name))

    return at_microbatch


def _fork_loaders() -> None:
    from climafuse.training import trainer

    real = trainer.training_arguments

    def training_arguments(*args: Any, **kwargs: Any) -> Any:
        arguments = real(*args, **kwargs)
        if arguments.dataloader_num_workers:
            arguments.dataloader_multiprocessing_context = "fork"
        return arguments

    trainer.training_arguments = training_arguments


def _work(job: dict[str, Any]) -> None:
    os.chdir(job["folder"])
    os.setsid()  # a group of its own, as a job of a cluster is
    write_to(1, Path("stdout"))
    write_to(2, Path("stderr"))
    plan: Callable[[Any, int], None] = lambda training, number: None  # noqa: E731
    if job["kill"]:
        plan = _plant(*job["kill"])
    elif job["send"]:
        plan = _send(*job["send"])
    _record(plan)
    if not job["spawn"]:
        _fork_loaders()
    from climafuse.cli import app

    sys.argv = ["climafuse", *job["arguments"]]
    app.main()


def _answer(job: dict[str, Any]) -> int:
    return wait([fork(partial(_work, job))], 300.0)[0][0]


if __name__ == "__main__":
    import zarr  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import climafuse.cli.train
    import climafuse.data.sources
    import climafuse.training.pipeline  # noqa: F401

    serve(_answer)
