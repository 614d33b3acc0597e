"""A signal that asks a run to end, such as a cluster sends before it kills: finish the step, save, stop.

    with StopSignals() as signals:      # in the main thread; elsewhere it does nothing
        ...                             # signals.received is "SIGTERM" once one has come

The first signal is only noted. A second one ends the process at once, as if nothing had been listening.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

# Slurm sends SIGTERM at the end of a job's time and whatever `--signal` says before it, by custom SIGUSR1.
_NAMES = ("SIGTERM", "SIGUSR1")


class StopSignals:
    """Notes a signal that asks the process to end, for as long as the context lasts."""

    names = _NAMES

    def __init__(self) -> None:
        self.received: str | None = None
        self._agreed: str | None = None
        self._agrees = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        """Starts listening. Only the main thread may, so in any other nothing is changed."""
        self.received = self._agreed = None
        if threading.current_thread() is threading.main_thread():
            for number in [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts back what handled the signals before."""
        for number, handler in self._before.items():
            # None: a handler that was not set from Python, and cannot be set back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def agree(self, name: str | None) -> None:
        """Takes what one of several processes has received: all act on it at the same step, or none."""
        self._agrees, self._agreed = True, name

    @property
    def acted_on(self) -> str | None:
        """What the run ends by: the signal received, or the one that several processes have agreed upon."""
        return self._agreed if self._agrees else self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = signal.Signals(number).name


def outlive_stop_signals(worker: int) -> None:
    """Lets a process that loads data live until its parent ends it.

    A terminal sends Ctrl-C, and Slurm its signals, to all processes of a job. A loader that died of one would
    take the step with it. Where the system cannot say who sent a signal (not Linux), nothing is changed.

    Args:
        worker: Its number, as `worker_init_fn` gives it.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getppid()
    signals = {signal.SIGINT, *(getattr(signal, name) for name in _NAMES)}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # threads that start later inherit it

    def wait() -> None:
        while signal.sigwaitinfo(signals).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, name="stop-signals", daemon=True).start()


class StopOnSignal(TrainerCallback):
    """Saves and stops once a signal was received.

    The step is not evaluated for it: an uninterrupted run would not have been evaluated here either.

    Args:
        signals: What was received.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Has this step saved, and ends the run."""
        if self.signals.acted_on is not None:
            control.should_training_stop = True
            control.should_save = True

    # An evaluation takes long, and what came in the meantime must not wait for another step.
    on_evaluate = on_step_end

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the run where the checkpoint has just been written anyway."""
        if self.signals.acted_on is not None:
            control.should_training_stop = True
