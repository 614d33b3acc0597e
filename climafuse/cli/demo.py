"""The main job on bundled real data, from fields to figures: `scripts/demo`.

Trains the default configuration, asks the model about test times it has never seen, and prints the share of right
facts beside what good guessers get and what happens when the field is swapped. Leaves `model/`, `metrics.json`,
`map.png` and `report.html` in the output folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from climafuse.cli.evaluate import print_evaluation
from climafuse.cli.handler import print_table, progress_line
from climafuse.cli.report import REPORT_FILE, build_report
from climafuse.errors import ClimafuseError
from climafuse.facts.kinds import FACT_KINDS

if TYPE_CHECKING:
    from climafuse.evaluation import Sample
    from climafuse.model.inference import Reader

# Three to six minutes with what goes before them, where the processor multiplies bfloat16 natively.
STEPS = 1250
# The limit elsewhere, preparation included: the states of the texts alone can take five minutes.
TRAINING_SECONDS = 600


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
    """Train, evaluate on the test split, write the figures, a map and a report.

    Args:
        output: Folder of the run.
        overrides: "section.key=value" each.

    Returns:
        What `metrics.json` holds.
    """
    begin = time.perf_counter()
    from climafuse.training.config import load_config

    # By steps or the clock, whichever is further ahead: a slow machine ends in time too, its learning rate annealed.
    budget = [
        f"training.steps={STEPS}",
        "training.schedule_by=seconds",
        f"training.max_seconds={TRAINING_SECONDS}",
    ]
    settings = [f"output.directory={json.dumps(str(output))}", "output.overwrite=true", *budget, *overrides]
    config = load_config(None, settings)
    output = Path(config.output.directory)

    from climafuse.evaluation.checkpoint import evaluate_checkpoint, write_json
    from climafuse.training.pipeline import run as train

    trained = train(config)
    for stale in ("metrics.json", "map.png", REPORT_FILE):  # of the model that was there before
        (output / stale).unlink(missing_ok=True)
    # From the saved folder, as a user would: what is scored is what was saved. Controls take as long as the training:
    # `climafuse evaluate` has them.
    found = evaluate_checkpoint(
        output,
        controls=(),
        say=lambda line: print(line, file=sys.stderr, flush=True),
        progress=lambda stage: progress_line(stage, goes_on=True),
    )
    metrics = {
        **{key: value for key, value in found.record.items() if key != "samples"},
        "train_seconds": trained["train_seconds"],
        "kinds": list(config.facts.kinds or FACT_KINDS),
        "total_seconds": time.perf_counter() - begin,
    }
    write_json(output / "metrics.json", metrics)
    splits = found.record["data"]["splits"]
    print(
        f"\nERA5 times for training {splits['train'][0]} to {splits['train'][1]}, for testing {splits['test'][0]} to "
        f"{splits['test'][1]}, {found.record['data']['num_test_times']} of them."
    )
    print_evaluation(found.record)
    print_samples(found.grounding.samples)
    draw(found.reader, found.grounding.samples, output / "map.png")
    written = build_report(output, reader=found.reader)
    print(
        f"\nmodel {trained['model']}, figures {output / 'metrics.json'}, map {output / 'map.png'}, "
        f"report {written['report']}"
    )
    return metrics


def print_samples(samples: Sequence[Sample]) -> None:
    """Print the first answer of each kind."""
    from climafuse.facts import fact_value

    print("\nSome answers, first ones of each kind, as they came:\n")
    seen: dict[str, Sample] = {}
    for sample in samples:
        seen.setdefault(f"{sample.truth.kind}/{sample.truth.variable}", sample)
    print_table(
        [
            (sample.prompt, sample.answer, fact_value(sample.truth), "right" if sample.right else "wrong")
            for sample in list(seen.values())[:12]
        ],
        header=("question", "answer", "exact", ""),
    )


def draw(reader: Reader, samples: Sequence[Sample], path: Path) -> None:
    """Draw one window with what was said of it and where the words come from."""
    from climafuse.evaluation.attribution import attention, occlusion
    from climafuse.facts import fact_value, parse, spoken
    from climafuse.report.attribution import draw_attribution, field_of, marks_of

    sample = next((s for s in samples if s.truth.key[:2] == ("maximum_position", "t2m")), samples[0])
    said = parse(sample.answer, sample.prompt, key=sample.question.key)
    fact = next((one for one in said if one.key == sample.truth.key), None)
    asked = sample.window, sample.prompt, sample.answer, fact
    draw_attribution(
        *field_of(sample.window, sample.truth),
        attention=attention(reader, *asked) if sample.answer else None,
        occlusion=occlusion(reader, *asked) if sample.answer else None,
        path=path,
        prompt=sample.prompt,
        answer=sample.answer,
        right=sample.right,
        truth=fact_value(spoken(sample.truth)),
        title="A test window of ERA5, and where the answer comes from",
        marks=marks_of(sample.window, sample.truth, said),
    )


if __name__ == "__main__":
    sys.exit(main())
