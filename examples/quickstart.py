"""Ask a trained model about a place and a time, and check its answers against the fields.

    python examples/quickstart.py                        # the model of scripts/demo, if it is there
    python examples/quickstart.py --model runs/my/model
    python examples/quickstart.py --location "Nairobi" --time 2026-03-31T15:00

Without a trained model, a short run trains one first (`--steps`, `--output`). So short a run teaches the wording and
rough numbers; `scripts/demo` trains the model that reads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from climafuse import Box, extract, find_place, open_climate, parse, sample_path, select_window
from climafuse.facts import agrees
from climafuse.model.inference import load_model

QUESTIONS = (
    "What is the mean temperature?",
    "What is the mean pressure?",
    "What is the mean wind speed?",
    "What is the wind direction?",
)


def main(arguments: Sequence[str] | None = None) -> list[tuple[str, str, bool]]:
    """Run the example.

    Returns:
        Question, answer, and whether the answer states a fact that is right, for each question.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, default=Path("runs/demo/model"), help="folder of a trained model"
    )
    parser.add_argument("--location", default="Paris, FR", help='place name or "latitude,longitude"')
    parser.add_argument("--time", default="2026-03-31T15:00", help="a test time of the bundled ERA5 sample")
    parser.add_argument(
        "--steps", type=int, default=200, help="steps of the short run, where there is no model"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/quickstart"), help="folder of the short run"
    )
    parser.add_argument("--backbone", default=None, help="another backbone for the short run: name or folder")
    options = parser.parse_args(arguments)

    folder = options.model
    if not folder.is_dir():
        print(f"no model in {folder}: training one for {options.steps} steps in {options.output}")
        folder = train_briefly(options.output, options.steps, options.backbone)

    reader = load_model(folder)
    config = reader.model.config
    fields = open_climate(sample_path("era5"), variables=config.variables)
    place = find_place(options.location)
    box = Box(place.latitude, place.longitude, *config.box_size)
    window = select_window(fields, time=options.time, box=box, history=config.history)
    answers = reader.answer([window], QUESTIONS, index=[0] * len(QUESTIONS))

    exact = {fact.key: fact for fact in extract(window)}
    checked = []
    for question, answer in zip(QUESTIONS, answers, strict=True):
        stated = parse(answer, question)
        right = bool(stated) and all(fact.key in exact and agrees(fact, exact[fact.key]) for fact in stated)
        checked.append((question, answer, right))
        print(f"{question:32s} {answer:32s} {'right' if right else 'wrong'}")
    return checked


def train_briefly(output: Path, steps: int, backbone: str | None) -> Path:
    """Train on a few facts of few windows; what `climafuse train --set … --output …` does."""
    from climafuse.training import load_config
    from climafuse.training.pipeline import run

    settings = [
        f"output.directory={output}",
        "output.overwrite=true",
        "facts.kinds=[mean/t2m, mean/msl, mean/ws10, direction]",
        "facts.questions_per_window=4",
        "facts.abstention_fraction=0",
        "data.train_windows=400",
        "data.validation_windows=32",
        f"training.steps={steps}",
        f"training.evaluation_interval={steps}",
        "training.windows_per_step=16",
    ]
    if backbone is not None:
        settings.append(f"backbone.name={backbone}")
    return Path(run(load_config(None, settings))["model"])


if __name__ == "__main__":
    main()
