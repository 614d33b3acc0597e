"""What a run tells while it goes on, and when it stops before its last step.

One line of `log.jsonl` for each logging step and each evaluation, the same scalars to TensorBoard, one line
of progress for the person watching. Early stopping keeps no state of its own: it is a pure function of the
evaluations so far, which a checkpoint holds, so a resumed run stops exactly where an uninterrupted one would.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from climafuse.data.files import whole_file
from climafuse.errors import OutputError, UsageError
from climafuse.training.checkpoint import disk_errors
from climafuse.training.group import Group

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_FILE = "log.jsonl"
_EVENT_BYTES = 100  # about what a number takes in an event file


class RunClock:
    """Seconds of training, over all the times a run was resumed.

    Args:
        now: A clock that never goes back.

    Attributes:
        before: Seconds of the run when it was resumed last.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._start: float | None = None
        self.before = 0.0
        self._agreed: float | None = None

    def start(self, before: float = 0.0) -> None:
        """Starts counting.

        Args:
            before: Seconds that the run had taken when it was interrupted.
        """
        self._start, self.before = self._now(), before
        self._agreed = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.before + (0.0 if self._start is None else self._now() - self._start)

    def agree(self, seconds: float) -> None:
        """Takes what several processes go by."""
        self._agreed = seconds

    @property
    def agreed(self) -> float:
        """What is decided by: `seconds`, or what several processes have agreed upon."""
        return self.seconds if self._agreed is None else self._agreed


class TimeLimit(TrainerCallback):
    """Stops after the step that leaves no time for another one; that step is evaluated and saved.

    Args:
        clock: The clock of the run.
        max_seconds: The limit.
    """

    def __init__(self, clock: RunClock, max_seconds: float) -> None:
        self.clock = clock
        self.max_seconds = max_seconds
        self.reached = False
        self._previous: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forgets the length of earlier steps."""
        self._previous = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compares the time left with the length of the last step."""
        if not control.should_training_stop and self.look(state):
            stop(args, control)
        self._previous = self.clock.agreed

    def look(self, state: TrainerState) -> bool:
        """Whether the time is up after a step; the first of a session is taken to last as long as the mean."""
        seconds = self.clock.agreed
        step_seconds = (
            seconds / max(state.global_step, 1) if self._previous is None else seconds - self._previous
        )
        self.reached = seconds + step_seconds >= self.max_seconds
        return self.reached


class EarlyStopping(TrainerCallback):
    """Stops after several evaluations in a row that brought no improvement.

    Args:
        patience: How many.
        metric: Key of the metric in the evaluation log, such as "eval_loss".
        greater_is_better: Direction of the metric.
        minimum_improvement: Smaller changes do not count.
    """

    def __init__(
        self, patience: int, metric: str, *, greater_is_better: bool, minimum_improvement: float
    ) -> None:
        self.patience = patience
        self.metric = metric
        self.greater_is_better = greater_is_better
        self.minimum_improvement = minimum_improvement
        self.reached = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the run when patience is at an end."""
        if self.look(state):
            control.should_training_stop = True
            control.should_save = True

    def look(self, state: TrainerState) -> bool:
        """Whether patience is at an end: counts the evaluations since the best one."""
        sign = -1.0 if self.greater_is_better else 1.0
        losses = [sign * entry[self.metric] for entry in state.log_history if self.metric in entry]
        self.reached = evaluations_without_improvement(losses, self.minimum_improvement) >= self.patience
        return self.reached


def evaluations_without_improvement(losses: Iterable[float], minimum_improvement: float = 0.0) -> int:
    """How many values at the end of a series did not improve on the best one before them.

    Args:
        losses: Values in order, smaller being better.
        minimum_improvement: By how much a value must be smaller than the best to count.
    """
    best, waited = math.inf, 0
    for loss in losses:
        if loss < best - minimum_improvement:
            best, waited = loss, 0
        else:
            waited += 1
    return waited


def stop(args: TrainingArguments, control: TrainerControl) -> None:
    """Asks for a clean end of training after this step: evaluated (if there is anything to) and saved."""
    control.should_training_stop = True
    control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"
    control.should_save = True


class JsonLinesLog(TrainerCallback):
    """Appends one JSON object a logging step or evaluation to a file.

    Lines past the step a run is resumed from are dropped first, as those steps are taken again: no step
    stands there twice.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Makes the file end at the step training goes on from."""
        kept = []
        if state.global_step:
            with disk_errors(self.path, OutputError, lambda: 0):
                lines = read_log(self.path)
            # The summary of an interrupted session would stand in the middle.
            kept = [
                line for line in lines if line["step"] <= state.global_step and "train_runtime" not in line
            ]
        content = "".join(_json_line(line) for line in kept).encode()
        with whole_file(self.path, size=len(content)) as temporary:
            temporary.write_bytes(content)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes one line, on disk before any checkpoint of its step: a killed run loses none before it."""
        content = _json_line({"step": state.global_step, **(logs or {})}).encode()
        with disk_errors(self.path, OutputError, lambda: len(content)), self.path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `log.jsonl`, up to one that a kill or a full disk cut short."""
    path = Path(path)
    if not path.is_file():
        return []
    lines = []
    for text in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line feed is unfinished or empty
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        lines.append(line)
    return lines


def _json_line(line: dict[str, Any]) -> str:
    # JSON has no NaN; a log that other programs cannot read would hide what it wants to show.
    return json.dumps({key: _finite(value) for key, value in line.items()}, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class TensorBoardLog(TrainerCallback):
    """Writes every logged number as a TensorBoard scalar.

    Args:
        directory: Folder of the event files.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        if find_spec("tensorboard") is None:
            raise UsageError(
                "output.tensorboard",
                expected="the tensorboard package",
                received="none installed",
                remedy="pip install tensorboard, or set output.tensorboard: false.",
            )
        self.directory = directory
        self._writer: SummaryWriter | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens an event file; on resuming, points past the resumed step are taken off the curves."""
        from torch.utils.tensorboard import SummaryWriter

        purge = state.global_step + 1 if state.global_step else None
        with disk_errors(self.directory, OutputError, lambda: _EVENT_BYTES):
            self._writer = SummaryWriter(str(self.directory), purge_step=purge)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the numbers of one log line."""
        if self._writer is None:
            return
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        with disk_errors(self.directory, OutputError, lambda: _EVENT_BYTES * len(numbers)):
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, state.global_step)
            self._writer.flush()  # it writes in a thread, and an error there is told here

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the event file."""
        if self._writer is not None:
            with disk_errors(self.directory, OutputError, lambda: _EVENT_BYTES):
                self._writer.close()
            self._writer = None


class Progress(TrainerCallback):
    """One line of progress with the time left: rewritten in place on a terminal, every few seconds otherwise.

    Args:
        clock: The clock of the run.
        max_seconds: The time limit of the run, if it has one.
        stream: Where to write; None for standard error.
        interval: Seconds between lines; None for 0.2 on a terminal and 5 otherwise.
    """

    def __init__(
        self,
        clock: RunClock,
        *,
        max_seconds: float | None = None,
        stream: TextIO | None = None,
        interval: float | None = None,
    ) -> None:
        self.clock = clock
        self.max_seconds = max_seconds
        self.stream = stream if stream is not None else sys.stderr
        self.terminal = self.stream.isatty()
        self.interval = interval if interval is not None else (0.2 if self.terminal else 5.0)
        self._shown = -math.inf
        self._begin = (0, 0.0)
        self._metrics: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remembers where this session began: only its own steps say how fast it goes."""
        self._begin = (state.global_step, self.clock.seconds)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps the newest of the numbers that the line shows."""
        logs = logs or {}
        if "why" in logs:
            what = "an evaluation batch" if "evaluation_windows" in logs else "a microbatch"
            fewer = logs.get("evaluation_windows", logs.get("windows"))
            line = f"memory: from here on {what} holds {fewer} windows, not {logs['before']} ({logs['why']})"
            self._show(f"{line}\n" if self.terminal else line)
            return
        self._metrics.update({key: value for key, value in logs.items() if isinstance(value, int | float)})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Shows the line if it is due."""
        seconds = self.clock.seconds
        if seconds - self._shown >= self.interval:
            self._shown = seconds
            self._show(self.line(state.global_step, state.max_steps))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves a last line standing."""
        self._show(self.line(state.global_step, state.max_steps))
        if self.terminal:
            self.stream.write("\n")

    def line(self, step: int, steps: int) -> str:
        """The line after some step.

        Args:
            step: Steps done.
            steps: Steps in all.
        """
        first_step, first_seconds = self._begin
        seconds = self.clock.seconds
        per_step = (seconds - first_seconds) / max(step - first_step, 1)
        left = (steps - step) * per_step
        if self.max_seconds is not None:
            left = min(left, max(self.max_seconds - seconds, 0.0))
        shown = [f"step {step}/{steps}"]
        for key, name in (("loss", "loss"), ("eval_loss", "validation loss")):
            if key in self._metrics:
                shown.append(f"{name} {self._metrics[key]:.3f}")
        if "samples_per_second" in self._metrics:
            shown.append(f"{self._metrics['samples_per_second']:.1f} samples/s")
        return "  ".join([*shown, f"{duration(seconds)} gone, {duration(left)} left"])

    def _show(self, line: str) -> None:
        self.stream.write(f"\r\x1b[K{line}" if self.terminal else f"{line}\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """A length of time as a person says it: "48 s", "2 min 10 s", "3 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Advance(TrainerCallback):
    """Notes how far this process has come in a step, so that one that hangs can be told from those that wait for it.

    Args:
        group: The processes of the run.
    """

    def __init__(self, group: Group) -> None:
        self.group = group

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes that a step begins."""
        self.group.advance()

    on_substep_end = on_pre_optimizer_step = on_optimizer_step = on_step_end = on_step_begin
    on_prediction_step = on_log = on_step_begin
