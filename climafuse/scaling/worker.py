"""One run of a study, in a process of its own: `python -m climafuse.scaling.worker FOLDER`.

The folder holds `config.yaml`; the run goes on from whatever it finds there, and leaves `figures.json` when it is done.
Another kind of run is another function given to `serve`, in a file that is started in place of this one
(`run_study(worker=…)`); so are encoders and fusions that only the user's code registers.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from climafuse.data.files import whole_file
from climafuse.data.lock import alone
from climafuse.data.splits import SplitName
from climafuse.errors import ClimafuseError, UsageError

if TYPE_CHECKING:
    from climafuse.evaluation.checkpoint import Evaluation

CONFIG_FILE, FIGURES_FILE = "config.yaml", "figures.json"
ATTENDED = "--attended"  # standard input is a pipe that whoever started this process holds
PATIENCE = 120.0  # seconds in which a run that lost its study may save and end
TIMED_ANSWERS = 96
SPLITS: tuple[SplitName, ...] = ("validation", "test")
_MEASURED = (
    "label",
    "f1",
    "interval",
    "precision",
    "recall",
    "abstained",
    "token_loss",
    "mean_of_kinds",
    "by_kind",
)


def serve(work: Callable[[Path], Mapping[str, Any]]) -> int:
    """Do the work of the folder that the command line names, once, and write its figures.

    The process ends, as if by SIGTERM, when the one that started it dies; and it waits for one before it that is
    still saving in the same folder.

    Args:
        work: Trains and measures in a folder; returns figures in JSON types, by part (`study.FIGURES`).

    Returns:
        The exit code.
    """
    folder = Path(sys.argv[1])
    if ATTENDED in sys.argv[2:]:
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        with _alone(folder / ".lock"):
            figures = work(folder)
            with whole_file(folder / FIGURES_FILE) as temporary:
                text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
                temporary.write_text(text + "\n", encoding="utf-8")
    except ClimafuseError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _end_with_parent() -> None:
    # Not `sys.stdin`: the interpreter would wait for its lock at exit.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    until = time.monotonic() + PATIENCE
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(alone(path))
                break
            except UsageError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        yield


def train_and_evaluate(folder: Path) -> dict[str, Any]:
    """Train a climate-text model, and ask it about the validation and the test times.

    Args:
        folder: Of the run.
    """
    from climafuse.evaluation.checkpoint import evaluate_checkpoint
    from climafuse.training.config import load_config
    from climafuse.training.pipeline import run
    from climafuse.training.trained_on import RECORD_FILE

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    config = load_config(folder / CONFIG_FILE, [f"output.directory={json.dumps(str(folder))}"])
    if not (folder / RECORD_FILE).is_file():  # which is written last
        run(config, resume=True, say=say)
    figures: dict[str, Any] = {"training": _training(folder, config.training.windows_per_step)}
    for split in SPLITS:
        found = evaluate_checkpoint(folder, split=split, thorough=False, controls=(), say=say)
        figures[split] = _grounding(found.record)
    figures["generation"] = _generation(found)
    return figures


def _training(folder: Path, windows_per_step: int) -> dict[str, Any]:
    """Seconds a step are a median over the log: of no preparation, no evaluation, and no moment of another load."""
    from climafuse.json_file import read_object
    from climafuse.training.callbacks import LOG_FILE, read_log
    from climafuse.training.trained_on import RECORD_FILE

    record = read_object(folder / RECORD_FILE)
    keys = (
        "steps",
        "stopped_by",
        "train_seconds",
        "trainable_parameters",
        "sites",
        "validation_loss",
        "machine",
    )
    lines = read_log(folder / LOG_FILE)
    rates = [line["samples_per_second"] for line in lines if line.get("samples_per_second")]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line and line["step"] == 0]
    peaks = [line["peak_memory_gb"] for line in lines if line.get("peak_memory_gb")]
    return {
        **{key: record[key] for key in keys},
        "backbone": record["backbone"]["id"],
        "random_weights": record["backbone"].get("random_weights", False),
        "loss_before": losses[0] if losses else None,  # `training.evaluate_first`
        "peak_memory_gb": max(peaks, default=None),  # of the process that trained last, if there were several
        "seconds_per_step": windows_per_step / statistics.median(rates) if rates else None,
    }


def _grounding(record: Mapping[str, Any]) -> dict[str, Any]:
    conditions = {
        name: {key: row[key] for key in _MEASURED}
        for name, row in record["conditions"].items()
        if name in ("true", "shuffled", "shown")
    }
    measured = {name: value for name, value in record["fact_f1"].items() if value is not None}
    return {
        "fact_f1": measured,
        "best_guesser": record["best_guesser"],
        "num_questions": record["num_questions"],
        "num_windows": record["num_windows"],
        "conditions": conditions,
        "numeric_error": record["conditions"]["true"]["numeric_error"],
    }


def _generation(found: Evaluation) -> dict[str, Any]:
    """How fast answers come, to the same questions in every run."""
    samples = found.grounding.samples[:TIMED_ANSWERS]
    windows = {id(sample.window): sample.window for sample in samples}
    places = {key: place for place, key in enumerate(windows)}
    prompts = [sample.prompt for sample in samples]
    index = [places[id(sample.window)] for sample in samples]
    begin = time.perf_counter()
    found.reader.answer(list(windows.values()), prompts, index=index)
    seconds = time.perf_counter() - begin
    return {"num_answers": len(samples), "answers_per_second": len(samples) / seconds}


if __name__ == "__main__":
    sys.exit(serve(train_and_evaluate))
