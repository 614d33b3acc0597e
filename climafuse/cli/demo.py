"""The main job on bundled real data, from fields to figures: `scripts/demo`.

Trains the default configuration, asks the model about test times it has never seen, and prints the share of right
facts beside what good guessers get and what happens when the field is swapped. Leaves `model/`, `metrics.json` and
`map.png` in the output folder.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from climafuse.cli.handler import print_table, progress_line
from climafuse.errors import ClimafuseError
from climafuse.facts.kinds import FACT_KINDS

if TYPE_CHECKING:
    from climafuse.evaluation import Grounding, Sample

CONDITIONS = (
    ("true", "model, true field"),
    ("shown", "model, swapped field, scored against the field shown"),
    ("shuffled", "model, swapped field, scored against the original"),
    ("climatology", "guesser: mean field of the training times, same place"),
    ("prior", "guesser: median or most frequent fact, same place"),
    ("persistence", "guesser: last training time, same place"),
)
TRAINING_SECONDS = 420  # limit, preparation included; a quiet machine is done sooner
# Kinds whose numeric error is worth a column of its own.
ERRORS = ("mean/t2m", "mean/msl", "mean/ws10", "mean/tp", "direction/wd10", "maximum_position/t2m")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder of the run")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", dest="overrides")
    options = parser.parse_args(arguments)
    try:
        run(options.output, options.overrides)
    except ClimafuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(output: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train, evaluate on the test split, write the figures and a map.

    Args:
        output: Folder of the run.
        overrides: "section.key=value" each.

    Returns:
        What `metrics.json` holds.
    """
    begin = time.perf_counter()
    from climafuse.training.config import load_config

    # By the clock, so that a slow machine finishes in time too, with its learning rate annealed all the same.
    budget = ["training.schedule_by=seconds", f"training.max_seconds={TRAINING_SECONDS}"]
    settings = [f"output.directory={json.dumps(str(output))}", "output.overwrite=true", *budget, *overrides]
    config = load_config(None, settings)
    output = Path(config.output.directory)

    from climafuse.data.files import whole_file
    from climafuse.evaluation import evaluate_grounding, questions_of
    from climafuse.manifest import machine
    from climafuse.model.inference import load_model
    from climafuse.training.dataset import make_examples, open_store
    from climafuse.training.pipeline import run as train

    trained = train(config)
    for stale in ("metrics.json", "map.png"):  # of the model that was there before
        (output / stale).unlink(missing_ok=True)
    # From the saved folder, as a user would: what is scored is what was saved.
    reader = load_model(trained["model"], max_new_tokens=config.evaluation.max_new_tokens)
    store = open_store(config)
    examples = make_examples(store, "test", config)
    windows = [example.window for example in examples]
    start = time.perf_counter()
    grounding = evaluate_grounding(
        reader,
        store,
        windows,
        questions_of(example.pairs for example in examples),
        history=config.data.history,
        seed=config.evaluation.seed,
        windows_per_batch=config.evaluation.windows_per_batch,
        progress=progress_line("evaluation, windows"),
    )
    metrics = {
        **grounding.to_dict(),
        "train_seconds": trained["train_seconds"],
        "evaluation_seconds": time.perf_counter() - start,
        "training": trained,
        "splits": {
            name: [str(store.time[index]) for index in store.splits.indices(name)[[0, -1]]]
            for name in ("train", "validation", "test")
        },
        "num_test_times": len(store.splits.valid_times("test", history=config.data.history)),
        "kinds": list(config.facts.kinds or FACT_KINDS),
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    metrics["total_seconds"] = time.perf_counter() - begin
    with whole_file(output / "metrics.json") as path:
        text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    report(grounding, metrics)
    draw(reader, grounding.samples, output / "map.png")
    print(f"\nmodel {trained['model']}, figures {output / 'metrics.json'}, map {output / 'map.png'}")
    return metrics


def report(grounding: Grounding, metrics: dict[str, Any]) -> None:
    """Print the figures and some answers."""
    f1 = metrics["fact_f1"]
    splits = metrics["splits"]
    print(
        f"\nERA5 times for training {splits['train'][0]} to {splits['train'][1]}, for testing "
        f"{splits['test'][0]} to {splits['test'][1]}, {metrics['num_test_times']} of them.\n"
        f"{metrics['num_questions']} questions about "
        f"{metrics['num_windows']} windows, {len(metrics['fact_f1_by_kind'])} kinds of fact.\n"
    )
    print_table(
        [
            (label, _figure(grounding.score(name).f1, 3), _figure(metrics["fact_f1_mean_of_kinds"][name], 3))
            for name, label in CONDITIONS
        ],
        header=("facts", "F1", "mean of kinds"),
    )
    print(
        f"\nbest guesser: {grounding.prior}, {f1['prior']:.3f}; the model is {f1['true'] - f1['prior']:+.3f}\n"
    )
    rows = []
    for key in ERRORS:
        kind, variable = key.split("/")
        errors = [metrics["numeric_error"][name].get(key) for name, _ in CONDITIONS]
        if any(error is not None for error in errors):
            unit = FACT_KINDS[kind].rules[variable].unit
            rows.append((f"{key} [{unit}]", *(_figure(error) for error in errors)))
    print_table(rows, header=("mean absolute error", *(name for name, _ in CONDITIONS)))
    print()
    print_table(
        [
            (key, *(_figure(row[name]) for name, _ in CONDITIONS))
            for key, row in metrics["fact_f1_by_kind"].items()
        ],
        header=("F1 by kind", *(name for name, _ in CONDITIONS)),
    )
    abstention = metrics["abstention"]
    if abstention["num_questions"]:
        print(
            f"\nabsent variable: says so in F1 {abstention['f1']:.3f} of {abstention['num_questions']} questions"
        )
    print("\nSome answers, first ones of each kind, as they came:\n")
    seen: dict[str, Sample] = {}
    for sample in grounding.samples:
        seen.setdefault(f"{sample.truth.kind}/{sample.truth.variable}", sample)
    print_table(
        [
            (sample.prompt, sample.answer, _spell(sample), "right" if sample.right else "wrong")
            for sample in list(seen.values())[:12]
        ],
        header=("question", "answer", "exact", ""),
    )


def draw(reader: Any, samples: Sequence[Sample], path: Path) -> None:
    """Draw one window with where the model attended."""
    from climafuse.model.inference import attended_tokens, placed
    from climafuse.report.maps import draw_map, drawn_variables

    sample = next((s for s in samples if s.truth.key[:2] == ("maximum_position", "t2m")), samples[0])
    found = attended_tokens(reader, sample.window, sample.prompt, sample.answer)
    draw_map(
        sample.window,
        drawn_variables(sample.window.variables),
        path=path,
        attention=None if found is None else placed(*found),
        title="A test window of ERA5",
        caption=f"{sample.prompt} {sample.answer}",
    )


def _figure(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def _spell(sample: Sample) -> str:
    value = sample.truth.value
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return f"{value[0]:g}, {value[1]:g}"
    return f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
