"""Signals: noted while a run lasts, put back afterwards. Whole runs with signals are in `tests/matrix`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.trainer_callback import TrainerCallback

from climafuse.errors import RunInterruptedError
from climafuse.training.checkpoint import list_checkpoints
from climafuse.training.interruption import StopSignals

Make = Callable[..., Any]


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]


class Send(TrainerCallback):
    """Sends a signal to the process in the middle of a step, or when a step is evaluated or saved."""

    def __init__(self, number: int, step: int, hook: str) -> None:
        def send(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), number)

        setattr(self, hook, send)


@pytest.mark.parametrize(
    ("hook", "saved"),
    [
        ("on_step_begin", 4),
        ("on_pre_optimizer_step", 4),
        ("on_step_end", 3),
        ("on_evaluate", 3),
        ("on_save", 4),
    ],
)
def test_a_signal_ends_a_run_with_its_step_saved(
    make_trainer: Make, make_config: Make, toolbox: Any, hook: str, saved: int
) -> None:
    """At step 3, which is evaluated and saved: what comes after saving is noticed at the next step."""
    before = handlers()
    trainer = make_trainer(
        make_config({"save_interval": 3}, steps=8, evaluation_interval=3, keep_best=False),
        eval_dataset=toolbox.Windows(4),
        callbacks=[Send(signal.SIGTERM, 3, hook)],
    )
    with pytest.raises(RunInterruptedError, match="SIGTERM") as caught:
        trainer.train()
    assert caught.value.exit_code == 75
    assert f"checkpoint-{saved} " in caught.value.remedy
    assert list_checkpoints(trainer.output)[-1][0] == saved
    assert trainer.stopped_by == "SIGTERM"
    assert handlers() == before


def test_the_last_step_is_an_end_like_any_other(make_trainer: Make) -> None:
    trainer = make_trainer(callbacks=[Send(signal.SIGTERM, 5, "on_step_begin")])
    trainer.train()
    assert trainer.stopped_by == "steps"


def test_handlers_are_those_of_the_program_before_and_after(make_trainer: Make) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        mine = handlers()
        make_trainer().train()
        assert handlers() == mine
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_is_changed(make_trainer: Make) -> None:
    seen: list[Any] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(handlers())

    before = handlers()
    trainer = make_trainer(callbacks=[Look()])
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 6
    assert all(entry == before for entry in seen)


def test_a_handler_that_is_not_of_python_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, Any]] = []

    def fake(number: int, handler: Any) -> Any:
        calls.append((number, handler))
        return None  # what signal.signal returns for a handler set in C

    monkeypatch.setattr(signal, "signal", fake)
    with StopSignals():
        pass
    assert calls[-2:] == [(signal.SIGTERM, signal.SIG_DFL), (signal.SIGUSR1, signal.SIG_DFL)]


def test_a_loader_that_dies_of_the_signal_is_not_called_a_bug(
    make_trainer: Make, make_config: Make, tmp_path: Path
) -> None:
    """Loaders that are still starting cannot protect themselves; the checkpoint before stands."""

    class Die(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    with pytest.raises(RunInterruptedError, match=r"checkpoint-2 with --resume"):
        make_trainer(make_config({"save_interval": 2}), callbacks=[Die()]).train()
