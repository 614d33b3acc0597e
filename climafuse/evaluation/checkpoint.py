"""A trained model's grounding: from its folder to figures, resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from climafuse.data.files import whole_file
from climafuse.data.splits import SPLIT_NAMES, SplitName
from climafuse.data.store import TrainingStore
from climafuse.data.times import format_time
from climafuse.data.window import Window
from climafuse.errors import ConfigurationError
from climafuse.evaluation.asking import Progress, ReadsClimate, Transcript
from climafuse.evaluation.controls import CONTROLS, model_folder, own_folder, train_controls
from climafuse.evaluation.grounding import Grounding, Sample, evaluate_grounding
from climafuse.evaluation.questions import Question, questions_of
from climafuse.facts import window_box
from climafuse.json_file import read_record
from climafuse.json_values import number
from climafuse.manifest import machine, sha256, versions
from climafuse.model.card import add_grounding
from climafuse.model.folder import WEIGHTS_FILE
from climafuse.model.inference import Reader, load_model
from climafuse.training.config import RunConfig, load_config
from climafuse.training.dataset import Examples, make_examples, open_store
from climafuse.training.pipeline import RECORD_FILE
from climafuse.training.trainer import CONFIG_FILE

FORMAT = 1  # of the record; raise it when transcripts must be made anew
RECORD = "evaluation.json"
HABITS = 200  # training windows looked at for how frequent events are
Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        grounding: Counts, figures and samples.
        record: What is written to `evaluation.json`.
        path: That file.
        reader: The model.
    """

    grounding: Grounding
    record: dict[str, Any]
    path: Path
    reader: Reader


def evaluate_checkpoint(
    checkpoint: str | Path,
    *,
    climate: str | None = None,
    pairs: str | None = None,
    controls: Sequence[str] = tuple(CONTROLS),
    num_questions: int | None = None,
    split: SplitName = "test",
    thorough: bool = True,
    say: Say,
    progress: Callable[[str], Progress] | None = None,
) -> Evaluation:
    """Evaluate a trained model on the test split of its data, or of other data.

    What was answered is kept in `evaluation/` beside the model, and so are the trained controls: an evaluation that was
    stopped goes on.

    Args:
        checkpoint: Folder of a run, or of the model in it.
        climate: Other fields than those of training: a sample, a training store, or files.
        pairs: Other pairs.
        controls: Which controls to train; those of the training data, whatever is asked about.
        num_questions: Ask at most so many; None asks all.
        split: Of whose times; choices between models are made on "validation".
        thorough: As of `evaluate_grounding`.
        say: Told one line at each stage.
        progress: As of `evaluate_grounding`.

    Raises:
        CheckpointError: The folder holds no model of a run, or its record is damaged.
        ClimafuseError: The data are at fault, or a control cannot be trained.
    """
    begin = time.perf_counter()
    folder = model_folder(checkpoint)
    place = own_folder(folder)
    trained = load_config(folder / CONFIG_FILE)
    run = read_record(folder.parent / RECORD_FILE)
    data = replace(
        trained.data,
        source=trained.data.source if climate is None else climate,
        pairs=trained.data.pairs if pairs is None else pairs,
    )
    config = replace(trained, data=data)
    reader = load_model(folder, max_new_tokens=config.evaluation.max_new_tokens)
    store = open_store(config)
    _check_fields(reader, store)
    examples = make_examples(store, split, config)
    steps = store.splits.valid_times(split, history=config.data.history)
    groups = [example.pairs for example in examples]
    windows, questions = _first([example.window for example in examples], questions_of(groups), num_questions)
    say(
        f"evaluation: {len(questions)} questions about {len(windows)} windows of {len(steps)} {split} times, "
        f"{config.data.source}"
    )
    trained_controls = train_controls(folder, names=controls, say=say) if controls else {}
    weights = {
        "model": sha256(folder / WEIGHTS_FILE),
        **{name: sha256(control.model / WEIGHTS_FILE) for name, control in trained_controls.items()},
    }
    asked = time.perf_counter()

    def transcript(name: str) -> Transcript:
        identity = {
            "format": FORMAT,
            "weights": weights[name],
            "backbone": reader.model.backbone_identity["content_hash"],
            "max_new_tokens": config.evaluation.max_new_tokens,
            "versions": versions(("torch", "transformers")),
        }
        return Transcript(place / f"{name}.jsonl", identity)

    others: dict[str, ReadsClimate] = {name: control.read() for name, control in trained_controls.items()}
    grounding = evaluate_grounding(
        reader,
        store,
        windows,
        questions,
        history=config.data.history,
        steps=steps.tolist(),
        training=_some(make_examples(store, "train", config)),
        controls=others,
        transcript=transcript,
        seed=config.evaluation.seed,
        thorough=thorough,
        progress=progress,
    )
    splits = {name: store.time[store.splits.indices(name)] for name in SPLIT_NAMES}
    now = time.perf_counter()
    record = {
        "format": FORMAT,
        "checkpoint": str(checkpoint),
        "weights_sha256": weights["model"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(("climafuse", "torch", "transformers")),
        "training": _training(run, trained, reader),
        "data": {
            "source": config.data.source,
            "license": store.license,
            "variables": list(store.variables),
            "splits": {
                name: [format_time(times[0]), format_time(times[-1])]
                for name, times in splits.items()
                if len(times)
            },
            "split": split,
            "num_test_times": len(steps),
            "num_windows": len(windows),
            "num_questions": grounding.score("true").num_referenced,
        },
        "controls": {
            name: {"label": control.label, "steps": control.steps, "seconds": control.seconds}
            for name, control in trained_controls.items()
        },
        **grounding.to_dict(),
        "samples": [_sample(sample) for sample in grounding.samples],
        "seconds": {"asking": now - asked, "all": now - begin},
    }
    path = place / (RECORD if split == "test" else f"{split}.json")
    write_json(path, record)
    if path.name == RECORD:
        add_grounding(folder, record)
    return Evaluation(grounding, record, path, reader)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write figures whole or not at all."""
    with whole_file(path) as temporary:
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _check_fields(reader: Reader, store: TrainingStore) -> None:
    """Refuse other variables, and anomalies against other times than training ones: they look like weather."""
    expected = list(reader.model.config.variables)
    if list(store.variables) != expected:
        raise ConfigurationError(
            "climate",
            expected=f"fields of the variables that the model reads, {', '.join(expected)}",
            received=", ".join(store.variables),
            remedy="Give fields that hold them.",
        )
    trained = (reader.model.config.statistics or {}).get("provenance", {}).get("anomalies")
    given = store.statistics.attrs.get("anomalies")
    if given != trained:
        raise ConfigurationError(
            "climate",
            expected=f"anomalies {_baseline(trained)}, as the model was trained on",
            received=f"anomalies {_baseline(given)}",
            remedy="Evaluate on the data of the run, or prepare a store with `data prepare --anomalies`.",
        )


def _baseline(anomalies: str | None) -> str:
    return "as the files give them" if anomalies is None else f"against the training times, by {anomalies}"


def _first(
    windows: list[Window], questions: list[Question], most: int | None
) -> tuple[list[Window], list[Question]]:
    """Leave out windows that come after so many questions."""
    if most is None or len(questions) <= most:
        return windows, questions
    questions = questions[:most]
    last = max((question.window for question in questions), default=-1)
    return windows[: last + 1], questions


def _some(examples: Examples) -> Iterator[Window]:
    """Windows at even distances."""
    chosen = np.linspace(0, len(examples) - 1, min(HABITS, len(examples))).round().astype(int)
    return (examples[index].window for index in chosen.tolist())


def _training(run: Mapping[str, Any], config: RunConfig, reader: Reader) -> dict[str, Any]:
    return {
        "steps": run.get("steps") if number(run.get("steps")) is not None else None,
        "seconds": number(run.get("train_seconds")),
        "trainable_parameters": sum(p.numel() for p in reader.model.parameters() if p.requires_grad),
        "backbone": dict(reader.model.backbone_identity),
        "encoder": config.encoder.name,
        "fusion": config.fusion.name,
        "sites": [str(site) for site in reader.model.sites],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    box = window_box(sample.window)
    return {
        "window": sample.question.window,
        "time": format_time(sample.window.time[-1]),
        "box": {"south": box.south, "north": box.north, "west": box.west, "east": box.east},
        "prompt": sample.prompt,
        "answer": sample.answer,
        "right": sample.right,
        "truth": sample.truth.to_dict(),
        "condition": "true",
    }
