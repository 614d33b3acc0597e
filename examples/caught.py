"""Three models that look good without reading the fields, and what `climafuse evaluate` says of each.

    python examples/caught.py runs/demo      # what scripts/demo trained; about half an hour on two cores

- cut: the trained model with its gates closed, so that no climate reaches the language model;
- memory: a language model trained for as many steps on where and when alone (the control "place_only");
- leak: one trained on questions that give their answers away ("... Hint: On average, temperature is 12 °C."), with its
  own control "text_only", which sees no field.

All three must be called not grounded, and the exit code is that of `climafuse evaluate` for such a model, 3. It is 1 if
one of them passes for grounded, or if there are too few questions to tell. What was trained and answered is kept in
--output and beside the run: a second start goes on.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from climafuse.cli.handler import NOT_GROUNDED
from climafuse.data.pairs import Pair, write_pairs
from climafuse.data.splits import SPLIT_NAMES
from climafuse.evaluation.checkpoint import evaluate_checkpoint
from climafuse.evaluation.controls import model_folder, train_controls
from climafuse.model.inference import load_model
from climafuse.training import RunConfig, load_config, write_folder
from climafuse.training.config import CONFIG_FILE
from climafuse.training.dataset import make_examples, open_store
from climafuse.training.pipeline import run
from climafuse.training.trained_on import read_trained_on

SHOWN = ("true", "shuffled", "shown", "blank", "prior", "text_only", "place_only")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a trained run")
    parser.add_argument("--output", type=Path, default=Path("runs/caught"), help="folder of all that is made")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the model with leaks")
    parser.add_argument("--questions", type=int, default=None, help="ask at most so many; default: all")
    options = parser.parse_args(arguments)

    folder = model_folder(options.run)
    config = load_config(folder / CONFIG_FILE)
    models = {
        "cut": (cut(folder, options.output / "cut" / "model"), ()),
        "memory": (memory(folder), ()),
        "leak": (leak(config, options.output / "leak", options.steps), ("text_only",)),
    }
    records = {}
    for name, (model, controls) in models.items():
        say(f"--- {name}")
        found = evaluate_checkpoint(model, controls=controls, num_questions=options.questions, say=say)
        records[name] = found.record
    show(records)
    return NOT_GROUNDED if all(record["verdict"]["grounded"] is False for record in records.values()) else 1


def cut(folder: Path, destination: Path) -> Path:
    """A model whose gates are closed, all else being as it was.

    Args:
        folder: Of the model.
        destination: Of the other one.
    """
    reader = load_model(folder)
    closed = 0
    with torch.no_grad():
        for name, parameter in reader.model.fusions.named_parameters():
            if name.endswith("gate"):
                parameter.zero_()
                closed += 1
    if not closed:
        raise SystemExit(f"{folder}: fusions without gates cannot be cut")

    def write(place: Path) -> None:
        reader.model.save_pretrained(place)
        reader.processor.save_pretrained(place)
        (place / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes())
        read_trained_on(folder).write(place)  # closed gates have learned from the same times

    return write_folder(destination, write, kind="model", details={"step": 0})


def memory(folder: Path) -> Path:
    """A model that was told where and when, never what the fields hold.

    Args:
        folder: Of the model that it is the control of.
    """
    return train_controls(folder, names=["place_only"], say=say)["place_only"].model


def leak(config: RunConfig, output: Path, steps: int) -> Path:
    """A model trained on questions that give their answers away.

    Args:
        config: Of the run that it is like.
        output: Folder of its run.
        steps: Training steps.
    """
    data = replace(config.data, train_windows=min(1500, config.data.train_windows), test_windows=48)
    plain = replace(config, data=data, facts=replace(config.facts, abstention_fraction=0.0))
    path = output / "pairs.jsonl"
    if not path.is_file():
        output.mkdir(parents=True, exist_ok=True)
        write_pairs(leaking_pairs(plain), path)
    settings = replace(
        plain,
        data=replace(data, pairs=str(path)),
        training=replace(
            config.training, steps=steps, schedule_by="steps", max_seconds=None, warmup_steps=None
        ),
        output=replace(config.output, directory=str(output / "run"), overwrite=True, tensorboard=False),
    )
    model = output / "run" / "model"
    return model if model.is_dir() else Path(run(settings)["model"])


def leaking_pairs(config: RunConfig) -> Iterator[Pair]:
    """The texts of a run, each question with its answer in it.

    Args:
        config: Of the run.
    """
    store = open_store(config)
    splits = [make_examples(store, split, config) for split in SPLIT_NAMES]
    for number, example in enumerate(itertools.chain.from_iterable(splits)):
        for pair in example.pairs:
            yield replace(pair, prompt=f"{pair.prompt} Hint: {pair.text}", sample=number)


def show(records: dict[str, Any]) -> None:
    """Print fact F1 and what gave each model away.

    Args:
        records: Name -> what the evaluation wrote.
    """
    print("\nfact F1   " + "".join(f"{name:>11}" for name in SHOWN))
    for name, record in records.items():
        scores = [record["fact_f1"].get(key) for key in SHOWN]
        print(f"{name:10}" + "".join(f"{'–' if score is None else f'{score:.3f}':>11}" for score in scores))
    for name, record in records.items():
        print(f"\n{name}: {record['verdict']['words']}")
        for check in record["verdict"]["checks"]:
            if check["passed"] is False:
                print(f"  {check['name']}: {check['value']:.3f}; {check['meaning']}")


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
