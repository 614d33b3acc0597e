"""Log files, progress and the two ways to stop early."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.trainer_callback import TrainerControl, TrainerState

from climafuse.memory import peak_memory_gb
from climafuse.training.callbacks import (
    EarlyStopping,
    JsonLinesLog,
    Progress,
    RunClock,
    TensorBoardLog,
    TimeLimit,
    duration,
    evaluations_without_improvement,
    read_log,
)

ARGS: Any = SimpleNamespace(eval_strategy="steps")


class Hand:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def clock(hand: Hand) -> RunClock:
    clock = RunClock(hand)
    clock.start()
    return clock


def test_clock_counts_over_resumptions(hand: Hand) -> None:
    clock = RunClock(hand)
    assert clock.seconds == 0.0
    clock.start(before=40.0)
    hand.now += 2.5
    assert clock.seconds == 42.5


def test_time_limit_leaves_room_for_the_step_it_will_not_take(hand: Hand, clock: RunClock) -> None:
    limit, control = TimeLimit(clock, 10.0), TrainerControl()
    limit.on_train_begin(ARGS, TrainerState(), control)
    for seconds in (3, 6):  # after the second, one more of 3 s would end at 9 s
        hand.now = 100.0 + seconds
        limit.on_step_end(ARGS, TrainerState(), control)
        assert not control.should_training_stop
    hand.now = 109.0  # one more would end at 12 s
    limit.on_step_end(ARGS, TrainerState(), control)
    assert control.should_training_stop
    assert control.should_save
    assert control.should_evaluate
    assert limit.reached


def test_evaluations_without_improvement() -> None:
    assert evaluations_without_improvement([]) == 0
    assert evaluations_without_improvement([3, 2, 1]) == 0
    assert evaluations_without_improvement([3, 1, 2, 1.5]) == 2
    # 0.95 and 0.91 are no better than 1 by more than 0.1; 0.85 is.
    assert evaluations_without_improvement([1, 0.95, 0.91], 0.1) == 2
    assert evaluations_without_improvement([1, 0.95, 0.91, 0.85], 0.1) == 0


@pytest.mark.parametrize(("greater", "values"), [(False, [1, 3, 2]), (True, [3, 1, 2])])
def test_early_stopping_counts_what_the_state_remembers(greater: bool, values: list[float]) -> None:
    callback = EarlyStopping(2, "eval_f1", greater_is_better=greater, minimum_improvement=0.0)
    for count, stops in ((2, False), (3, True)):
        history = [{"eval_f1": value} for value in values[:count]] + [{"train_loss": 1.0}]
        control = TrainerControl()
        callback.on_evaluate(ARGS, TrainerState(log_history=history), control)
        assert control.should_training_stop is stops
        assert control.should_save is stops


def test_log_lines_and_resuming_drop_what_will_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "run" / "log.jsonl"
    log, control = JsonLinesLog(path), TrainerControl()
    log.on_train_begin(ARGS, TrainerState(), control)
    for step in (1, 2, 3):
        log.on_log(ARGS, TrainerState(global_step=step), control, {"loss": step / 2, "gate/3": 0.0})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed here
    assert [line["step"] for line in read_log(path)] == [1, 2, 3]

    JsonLinesLog(path).on_train_begin(ARGS, TrainerState(global_step=2), control)
    assert read_log(path) == [
        {"step": 1, "loss": 0.5, "gate/3": 0.0},
        {"step": 2, "loss": 1.0, "gate/3": 0.0},
    ]
    JsonLinesLog(path).on_train_begin(ARGS, TrainerState(), control)  # a new run
    assert read_log(path) == []


def test_log_stays_json_where_a_number_is_not_finite(tmp_path: Path) -> None:
    log = JsonLinesLog(tmp_path / "log.jsonl")
    log.on_log(ARGS, TrainerState(global_step=1), TrainerControl(), {"eval_error": float("inf")})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "eval_error": "inf"}


def test_tensorboard_holds_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log, control = TensorBoardLog(tmp_path), TrainerControl()
    log.on_train_begin(ARGS, TrainerState(), control)
    for step in (1, 2):
        log.on_log(ARGS, TrainerState(global_step=step), control, {"loss": 1.5 * step, "stopped_by": "steps"})
    log.on_train_end(ARGS, TrainerState(), control)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.5), (2, 3.0)]
    assert events.Tags()["scalars"] == ["loss"]


def test_progress_off_a_terminal_is_a_line_every_few_seconds(hand: Hand, clock: RunClock) -> None:
    stream, control = io.StringIO(), TrainerControl()
    progress = Progress(clock, stream=stream, interval=5.0)
    progress.on_train_begin(ARGS, TrainerState(), control)
    progress.on_log(ARGS, TrainerState(), control, {"loss": 1.23456, "samples_per_second": 30.0})
    for step in range(1, 8):
        hand.now += 2.0
        progress.on_step_end(ARGS, TrainerState(global_step=step, max_steps=50), control)
    # Seconds 2, 8 and 14: the first, then each at least 5 s after the last. 7 steps in 14 s, 43 to go: 86 s.
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1] == "step 7/50  loss 1.235  30.0 samples/s  14 s gone, 1 min 26 s left"


def test_progress_on_a_terminal_stays_on_one_line(hand: Hand, clock: RunClock) -> None:
    stream, control = io.StringIO(), TrainerControl()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    progress = Progress(clock, stream=stream, max_seconds=10.0)
    progress.on_train_begin(ARGS, TrainerState(global_step=10), control)
    for step in (11, 12):
        hand.now += 1.0
        progress.on_step_end(ARGS, TrainerState(global_step=step, max_steps=1000), control)
    progress.on_train_end(ARGS, TrainerState(global_step=12, max_steps=1000), control)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("step 12/1000  2 s gone, 8 s left\n")  # the limit, not the steps, ends this run


def test_duration() -> None:
    assert [duration(s) for s in (0.4, 59.4, 130, 3900)] == ["0 s", "59 s", "2 min 10 s", "1 h 05 min"]


@pytest.mark.skipif(sys.platform == "win32", reason="not told there")
def test_peak_memory_is_plausible() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    assert pages * 4096 / 1e9 * 0.9 <= peak_memory_gb() < 100
