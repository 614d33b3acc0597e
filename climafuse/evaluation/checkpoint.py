"""A trained model's grounding: from its folder to figures, resumable."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from climafuse.data.files import whole_file
from climafuse.data.lock import alone
from climafuse.data.pair_table import PairTable
from climafuse.data.pairs import Pair
from climafuse.data.splits import SplitName
from climafuse.data.store import TrainingStore
from climafuse.data.times import days_since_epoch, format_time, latest_time
from climafuse.data.window import Window
from climafuse.errors import (
    CheckpointError,
    ClimateFileError,
    ConfigurationError,
    OutputError,
    PairsError,
    UsageError,
)
from climafuse.evaluation.asking import Progress, ReadsClimate, Transcript
from climafuse.evaluation.controls import CONTROLS, own_folder, train_controls, trained_folder
from climafuse.evaluation.grounding import Grounding, Sample, evaluate_grounding
from climafuse.evaluation.questions import Question, questions_of
from climafuse.facts import window_box
from climafuse.json_file import read_object, read_record
from climafuse.json_values import number, table
from climafuse.manifest import machine, sha256, verify_folder, versions
from climafuse.model.card import add_grounding
from climafuse.model.folder import WEIGHTS_FILE
from climafuse.model.inference import Reader, load_model
from climafuse.training.config import CONFIG_FILE, RunConfig, load_config
from climafuse.training.dataset import Examples, make_examples, open_store
from climafuse.training.identity import identify_split, split_spans
from climafuse.training.trained_on import DATA_FILE, NOT_KNOWN, RECORD_FILE, TrainedOn, read_trained_on

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
    stopped goes on. The record of the run, `evaluation/evaluation.json`, and the table in the model's card are of its
    own model, all questions and its own data; what else is asked goes to a file of its own (`record_name`). Which data
    are its own is a matter of what they hold, as `data.json` beside the weights tells, not of where they lie. Where
    nothing tells, none are, and it is not known whether their times were in training.

    Args:
        checkpoint: Folder of a run, or of the model in it.
        climate: Other fields than those of training, or the same in another place: a sample, a training store, or
            files. Of others, windows that are not at least the gap of the run away from its training and validation
            times are left out.
        pairs: Other pairs; of these windows, too.
        controls: Which controls to train; those of the training data, whatever is asked about.
        num_questions: Ask at most so many, spread over the windows; None asks all.
        split: Of whose times; choices between models are made on "validation".
        thorough: As of `evaluate_grounding`.
        say: Told one line at each stage.
        progress: As of `evaluate_grounding`.

    Raises:
        CheckpointError: The folder holds no model that a run has saved, or one that was altered, or its record is
            damaged.
        ClimafuseError: The data are at fault, or a control cannot be trained.
    """
    begin = time.perf_counter()
    folder = trained_folder(checkpoint)
    place = own_folder(folder)
    manifest = verify_folder(folder)
    trained = load_config(folder / CONFIG_FILE)
    run, known = read_record(folder.parent / RECORD_FILE), read_trained_on(folder)
    config, store, examples, other = _open(trained, known, climate=climate, pairs=pairs, split=split, say=say)
    groups = [pairs_of for _, pairs_of in examples]
    everything = questions_of(groups)
    windows, questions = _spread([window for window, _ in examples], everything, num_questions)
    reader = load_model(folder, max_new_tokens=config.evaluation.max_new_tokens)
    _check_fields(reader, store)
    steps = store.splits.valid_times(split, history=config.data.history)
    num_texts, spans = sum(map(len, groups)), split_spans(store)
    num_left = num_texts - len(everything)
    say(
        f"evaluation: {len(questions)} questions about {len(windows)} windows of {_num_times(windows)} {split} times, "
        f"{config.data.source}"
        + (f"; texts that ask for no single fact are not asked: {num_left}" if num_left else "")
    )
    trained_controls = {}
    if controls:
        with _more_help("Controls are trained on the data of the run: put them back, or use --no-controls."):
            trained_controls = train_controls(
                folder, names=controls, config=config if other is None else None, say=say
            )
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
            "versions": versions(("climafuse", "torch", "transformers")),
        }
        kept = Transcript(place / f"{name}-{weights[name][:12]}.jsonl", identity)
        if kept.unused:
            beside = "; ".join(f"{other.name} ({why})" for other, why in kept.unused.items())
            say(f"note: answers of other evaluations are kept, but not used: {beside}")
        return kept

    others: dict[str, ReadsClimate] = {name: control.read() for name, control in trained_controls.items()}
    with alone(place / ".lock"):
        grounding = evaluate_grounding(
            reader,
            store,
            windows,
            questions,
            history=config.data.history,
            steps=steps.tolist(),
            training=_habits(store, config),
            controls=others,
            transcript=transcript,
            seed=config.evaluation.seed,
            thorough=thorough,
            progress=progress,
        )
    now = time.perf_counter()
    apart = [] if other is None else [other if not known.splits else f"not the data of the run, {other}"]
    if len(questions) < len(everything):
        apart.append(f"{len(questions)} of {len(everything)} questions")
    if folder.name != "model":
        apart.append("not the model of the run")
    record = {
        "format": FORMAT,
        "checkpoint": str(checkpoint),
        "weights_sha256": weights["model"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(("climafuse", "torch", "transformers")),
        "training": _training(run, manifest, trained, reader),
        "data": {
            "source": config.data.source,
            "license": store.license,
            "variables": list(store.variables),
            "splits": {name: list(span) for name, span in {**known.splits, split: spans[split]}.items()},
            "split": split,
            "unseen": (split == "test" or other is not None) if known.splits else None,
            "num_test_times": _num_times(windows),
            "num_windows": len(windows),
            "num_questions": grounding.score("true").num_referenced,
            "num_texts_not_asked": num_left,
            "apart": apart,
        },
        "controls": {
            name: {"label": control.label, "steps": control.steps, "seconds": control.seconds}
            for name, control in trained_controls.items()
        },
        **grounding.to_dict(),
        "samples": [_sample(sample) for sample in grounding.samples],
        "seconds": {"asking": now - asked, "all": now - begin},
    }
    path = place / record_name(
        split, thorough=thorough, is_of_run=not apart, record=record, kept=place / RECORD
    )
    write_json(path, record)
    if path.name == RECORD:
        try:
            add_grounding(folder, record)
        except OutputError as error:  # the figures are told and kept all the same
            say(f"note: the model card is without these figures: {error}")
    return Evaluation(grounding, record, path, reader)


def unseen_windows(
    reader: Reader, folder: Path, *, climate: str | None, num: int, say: Say
) -> tuple[list[Window], bool | None]:
    """Windows of test times: of the data of the run, or of others that the model can tell nothing of from memory.

    Args:
        reader: The model.
        folder: Where it lies.
        climate: Other fields than those of training; None for those.
        num: At most so many.
        say: Told how many windows are left out.

    Returns:
        The windows, and True, or None where nothing tells whether they were in training.

    Raises:
        CheckpointError: The folder is not as a run has saved it, or the record of the run is damaged.
        ClimafuseError: The data are at fault, or all of them are of times that were seen in training.
    """
    verify_folder(folder)
    trained, known = load_config(folder / CONFIG_FILE), read_trained_on(folder)
    _, store, examples, _ = _open(trained, known, climate=climate, split="test", num_windows=num, say=say)
    _check_fields(reader, store)
    return [window for window, _ in examples[:num]], True if known.splits else None


def _open(
    trained: RunConfig,
    known: TrainedOn,
    *,
    climate: str | None,
    pairs: str | None = None,
    split: SplitName,
    num_windows: int | None = None,
    say: Say,
) -> tuple[RunConfig, TrainingStore, list[tuple[Window, list[Pair]]], str | None]:
    """Open what a model is asked about.

    Args:
        trained: How its run was configured.
        known: What it was trained on.
        climate: As of `evaluate_checkpoint`.
        pairs: Likewise.
        split: Likewise.
        num_windows: Make so many of the test times; None for as many as the run was set to.
        say: Told what is not of the run, and left out.

    Returns:
        The configuration, the store, windows with their texts, and how they differ from those of the run (None for its
        own); of others only times that were not seen, as far as anything tells.
    """
    data = replace(
        trained.data,
        source=trained.data.source if climate is None else climate,
        pairs=trained.data.pairs if pairs is None else pairs,
    )
    config = replace(trained, data=data)
    with _more_help(
        "If the data of the run lie elsewhere now, give them with --climate (and --pairs).",
        unless=data != trained.data,
    ):
        store = open_store(config)
    made = make_examples(store, split, config)
    other = _difference(store, made, known, split=split, is_elsewhere=data != trained.data)
    if num_windows is not None:  # data of a run are known by as many windows as it was set to
        config = replace(config, data=replace(data, test_windows=num_windows))
        made = make_examples(store, split, config)
    examples = _merged(made)
    if not known.splits:
        say(f"data: {data.source}: {other}")
    elif other is not None:
        say(f"data: {data.source}: not those of the run, {other}")
        examples = _unseen(examples, known.seen, gap_hours=data.gap_hours, say=say)
    return config, store, examples, other


def record_name(split: str, *, thorough: bool, is_of_run: bool, record: Mapping[str, Any], kept: Path) -> str:
    """Where figures are written, so that lesser ones replace no others.

    Args:
        split: Whose times were asked about.
        thorough: Whether under every condition.
        is_of_run: Whether all was asked about the run's own data, of its own model.
        record: The figures.
        kept: The record of the run, if there is one.

    Returns:
        "evaluation.json" for the record of the run; "validation.json" or "test.json" for a quick look at a split;
        "other.json" for anything else, and for a record without controls where there is one of this model with them.
    """
    if not is_of_run:
        return "other.json"
    if split != "test" or not thorough:
        return f"{split}.json"
    try:
        before = read_object(kept)
        is_same = before["weights_sha256"] == record["weights_sha256"]
        has_more = is_same and set(before["controls"]) > set(record["controls"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or none that can be read
        has_more = False
    return "other.json" if has_more else RECORD


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


def _spread(
    windows: Sequence[Window], questions: Sequence[Question], most: int | None
) -> tuple[list[Window], list[Question]]:
    """Ask at most so many questions, about as many windows as there can be: one window tells nothing, and has no other.

    One question of each window, then another of each, and of the last round those at even distances: always the same.
    """
    if most is None or len(questions) <= most:
        return list(windows), list(questions)
    rounds: dict[int, list[int]] = {}  # how many of its window came before → positions of questions
    asked: Counter[int] = Counter()
    for position, question in enumerate(questions):
        rounds.setdefault(asked[question.window], []).append(position)
        asked[question.window] += 1
    chosen: list[int] = []
    for positions in rounds.values():
        num = min(most - len(chosen), len(positions))
        chosen += [positions[number * len(positions) // num] for number in range(num)]
    kept = [questions[position] for position in sorted(chosen)]
    numbers = {old: new for new, old in enumerate(sorted({question.window for question in kept}))}
    return [windows[old] for old in numbers], [replace(q, window=numbers[q.window]) for q in kept]


def _habits(store: TrainingStore, config: RunConfig) -> Iterator[Window]:
    """Windows of the training times; texts about them are not needed, and not asked of the pairs."""
    data = replace(config.data, train_windows=min(HABITS, config.data.train_windows), pairs=None)
    plain = replace(store, all_pairs=PairTable(()))
    return (example.window for example in make_examples(plain, "train", replace(config, data=data)))


def _merged(examples: Examples) -> list[tuple[Window, list[Pair]]]:
    """Windows with their texts, each window once: of the same times and cells, two are no two samples."""
    found: dict[tuple[Any, ...], tuple[Window, list[Pair]]] = {}
    for example in examples:
        window = example.window
        key = (tuple(window.time.tolist()), window.latitude.tobytes(), window.longitude.tobytes())
        found.setdefault(key, (window, []))[1].extend(example.pairs)
    return list(found.values())


def _num_times(windows: Sequence[Window]) -> int:
    return len({window.time[-1] for window in windows})


def _difference(
    store: TrainingStore, examples: Examples, known: TrainedOn, *, split: str, is_elsewhere: bool
) -> str | None:
    """How data differ from those of a run, in words; None for its own, wherever they lie.

    Where only their times are known, not what they held, they are its own if they lie where the run found them.
    """
    if not known.splits:
        return NOT_KNOWN
    found = split_spans(store)
    for name in {**known.splits, **found}:
        if known.splits.get(name) != found.get(name):
            before, now = (" to ".join(spans.get(name, ("none",))) for spans in (known.splits, found))
            return f"whose {name} times were others: {before}, now {now}"
    content = known.contents.get(split)
    if content is None:
        return f"as far as {DATA_FILE} and {RECORD_FILE} tell" if is_elsewhere else None
    texts = bool(store.all_pairs)
    return None if content == identify_split(examples, texts=texts) else f"which held others at {split} times"


@contextmanager
def _more_help(remedy: str, *, unless: bool = False) -> Iterator[None]:
    """Add to the remedy of an error about a file of the run."""
    try:
        yield
    except (ClimateFileError, PairsError) as error:
        if unless:
            raise
        raise type(error)(
            error.argument,
            expected=error.expected,
            received=error.received,
            remedy=f"{error.remedy} {remedy}",
        ) from error


def _unseen(
    examples: list[tuple[Window, list[Pair]]], seen: Sequence[tuple[str, str]], *, gap_hours: float, say: Say
) -> list[tuple[Window, list[Pair]]]:
    """Leave out windows that are not a gap away from times that were seen."""
    if not examples:
        return examples
    like = examples[0][0].time
    ends = [days_since_epoch([_in_calendar_of(like, end) for end in span]) for span in seen]
    kept = []
    for window, pairs in examples:
        first, last = days_since_epoch(window.time)[[0, -1]]
        if all(last < begin - gap_hours / 24 or first > end + gap_hours / 24 for begin, end in ends):
            kept.append((window, pairs))
    if not kept:
        raise ConfigurationError(
            "climate",
            expected=f"times at least {gap_hours:g} hours from those of the run: {_spans(seen)}",
            received=f"{len(examples)} windows, none of them such",
            remedy="Give fields of other times; answers about these may be remembered.",
        )
    if len(kept) < len(examples):
        say(
            f"{len(examples) - len(kept)} windows left out: less than {gap_hours:g} hours from {_spans(seen)}"
        )
    return kept


def _in_calendar_of(like: np.ndarray, end: str) -> Any:
    """The end of a span of training; fields of another calendar may have no such date."""
    try:
        return latest_time(end, like=like)
    except UsageError as error:
        raise CheckpointError(
            "times of training",
            expected=f"dates that the calendar of the fields has, {getattr(like[0], 'calendar', 'standard')}",
            received=end,
            remedy="Ask about fields of the calendar that the model was trained on.",
        ) from error


def _spans(seen: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{first} to {last}" for first, last in seen)


def _training(
    run: Mapping[str, Any], manifest: Mapping[str, Any], config: RunConfig, reader: Reader
) -> dict[str, Any]:
    # A checkpoint has done fewer than its run.
    steps = table(manifest, "details").get("step", run.get("steps"))
    return {
        "steps": steps if number(steps) is not None else None,
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
