"""What a run left in its folder, read as plain data for the report.

    model/                      the saved model, `data.json` in it; while a run goes on, its newest checkpoint stands in
    log.jsonl                   losses, gates and rates by step
    run.json                    machine, date, license (`training/pipeline.py` writes it at the end)
    evaluation/evaluation.json  what `climafuse evaluate` measured
    evaluation/other.json       what it measured of other data, of some of the questions or of another checkpoint: not
                                shown, but told of where there is nothing else

All but the model may be absent: the report then says what was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from climafuse.errors import CheckpointError
from climafuse.json_file import read_object, read_record
from climafuse.json_values import number, rows, table, text
from climafuse.manifest import MANIFEST_NAME, read_manifest
from climafuse.model.folder import check_folder
from climafuse.training.callbacks import LOG_FILE, read_log
from climafuse.training.checkpoint import newest_good_checkpoint
from climafuse.training.config import CONFIG_FILE, RunConfig, load_config
from climafuse.training.trained_on import RECORD_FILE, TrainedOn, read_trained_on

EVALUATION_FILE, OTHER_FILE = Path("evaluation", "evaluation.json"), Path("evaluation", "other.json")
EVALUATION_FORMAT = 1


@dataclass(frozen=True)
class RunRecord:
    """A run as it lies in its folder.

    Args:
        folder: The folder.
        model: Folder of the saved model, or of the checkpoint that stands in for it.
        settings: How the run was configured.
        config: Configuration of the model, as its `config.json` has it.
        manifest: Of the model's folder.
        log: Lines of the log.
        record: Machine, date, license; empty if the run has not ended.
        trained_on: Splits; empty if nothing tells.
        evaluation: What was measured; empty if nothing was.
        stale: The evaluation is of other weights than those of the model.
        apart: Where there is no evaluation, but figures that are not of this run: what they are of, as sentences.
    """

    folder: Path
    model: Path
    settings: RunConfig
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    record: Mapping[str, Any] = field(default_factory=dict)
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    stale: bool = False
    apart: str = ""

    @property
    def obstacle(self) -> str:
        """Why any evaluation is kept apart, in words; empty where one can be that of this run."""
        if not self.trained_on.splits:
            return "nothing tells what it was trained on"
        return "" if self.finished else "the run has not saved its model yet"

    @property
    def finished(self) -> bool:
        """Whether the run has saved its model."""
        return self.model.name == "model"


def read_run(folder: str | Path) -> RunRecord:
    """Read what a run left.

    Args:
        folder: The output folder of `climafuse train`, or that of the model in it.

    Raises:
        CheckpointError: It is no folder of a run, or its model or evaluation is damaged.
        ConfigurationError: Its configuration cannot be read.
    """
    folder = Path(folder)
    if folder.name == "model" and _is_model(folder):
        folder = folder.parent
    model = _model_of(folder)
    check_folder(model)
    config = read_object(model / "config.json")
    evaluation = read_record(folder / EVALUATION_FILE)
    if evaluation and evaluation.get("format") != EVALUATION_FORMAT:
        raise CheckpointError(
            str(folder / EVALUATION_FILE),
            expected=f"an evaluation of format {EVALUATION_FORMAT}",
            received=f"format {evaluation.get('format')!r}",
            remedy=f"Measure again: climafuse evaluate {folder}.",
        )
    return RunRecord(
        folder=folder,
        model=model,
        settings=load_config(model / CONFIG_FILE),
        config=config,
        manifest=read_manifest(model),
        log=read_log(folder / LOG_FILE),
        record=read_record(folder / RECORD_FILE),
        trained_on=read_trained_on(model),
        evaluation=evaluation,
        stale=bool(evaluation) and _is_stale(folder, model, config, evaluation),
        apart="" if evaluation else _apart(folder),
    )


def _apart(folder: Path) -> str:
    """What figures are of that an evaluation has kept apart."""
    other = read_record(folder / OTHER_FILE)
    if not other:
        return ""
    data = table(other, "data")
    asked = number(data.get("num_questions"))
    questions = "figures" if asked is None else f"figures of {asked:,.0f} questions"
    why = [text(reason, 500) for reason in rows(data.get("apart"))]
    told = (
        f"{OTHER_FILE} holds {questions} about {text(data.get('source'), 500) or 'unknown fields'}, asked of "
        f"{text(other.get('checkpoint'), 500) or 'an unknown model'}. They are not shown as those of this run: "
        f"{'; '.join(why) or 'other data, fewer questions or another checkpoint'}."
    )
    return " ".join(told.split())


def _model_of(folder: Path) -> Path:
    if (folder / "model" / MANIFEST_NAME).is_file():
        return folder / "model"
    checkpoint = newest_good_checkpoint(folder, with_best=False) if folder.is_dir() else None
    if checkpoint is not None:
        return checkpoint
    of_model = _is_model(folder)
    raise CheckpointError(
        str(folder),
        expected="the folder of a run, with model/ or a checkpoint in it",
        received="the folder of a model"
        if of_model
        else "another folder"
        if folder.is_dir()
        else "no such folder",
        remedy=f"Give {folder.resolve().parent}."
        if of_model
        else "Give the output.directory of `climafuse train`, such as runs/train.",
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / MANIFEST_NAME).is_file()


def _is_stale(folder: Path, model: Path, config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> bool:
    """By the hash of the weights where the evaluation tells it, else by which file is older."""
    evaluated = evaluation.get("weights_sha256")
    if evaluated is not None:
        return bool(evaluated != config.get("weights_sha256"))
    return (folder / EVALUATION_FILE).stat().st_mtime < (model / MANIFEST_NAME).stat().st_mtime
