"""Does a model name El Niño and La Niña in months it has not seen? Trained on 1979-2004, asked about 2007-2013.

    python examples/enso.py                              # in runs/enso; some minutes on two cores
    python examples/enso.py --seed 1 --output runs/enso1
    python examples/enso.py --model runs/enso/run/model  # ask a model that is there

The bundled anomalies of sea surface temperature refer to 1981-2010, four test years among them: they are measured
anew against the training years, each calendar month by itself. A month is El Niño where the mean anomaly of the Niño
3.4 region is 0.5 °C or more, La Niña where it is -0.5 °C or less. The model sees the fields of that region, one month
at a time, and is asked in words. Beside it stand guessers: the most frequent state of the training years, the state of
the month before, that of the last training month. Then each month is shown with the values of another one: a model that
reads follows the values, one that remembers does not.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from climafuse import Box, TrainingStore, Window, extract, parse
from climafuse.evaluation.correlation import SamplePoints, field_scales
from climafuse.evaluation.statistics import interval, mean
from climafuse.evaluation.statistics import values as contributions
from climafuse.evaluation.views import swap_values
from climafuse.facts.phrasing import WORDINGS
from climafuse.model.inference import Reader, load_model
from climafuse.training import load_config
from climafuse.training.dataset import open_store
from climafuse.training.pipeline import run

REGION = Box(0, 215, 11, 52)  # just the cells of Niño 3.4, 5°S to 5°N and 170°W to 120°W
STATES = ("La Niña", "neutral", "El Niño")
ASK_STATE = "What is the ENSO state?"
ASK_OTHERWISE = tuple(wording.question for wording in WORDINGS["enso"] if wording.question != ASK_STATE)
ASK_INDEX = "What is the Niño 3.4 index?"
SETTINGS = (
    "data.source=sst_anomaly",
    "data.variables=[sst_anomaly]",
    "data.periods={train: [1979-01, 2004-12], validation: [2005-04, 2006-10], test: [2007-01, 2013-12]}",
    "data.gap_hours=2000",  # nearly three months, at least, between training, validation and test
    "data.anomalies=month",
    "data.history=1",
    f"data.box_degrees=[{REGION.height:g}, {REGION.width:g}]",
    # Half of the windows are the region itself, half lie anywhere: 312 months are few to learn numbers from, but the
    # anomaly of any box is read alike.
    f'data.places={{"{REGION.latitude:g},{REGION.longitude:g}": 0.5}}',
    "facts.kinds=[enso, enso, enso, nino34, anomaly, anomaly_class]",
    "facts.abstention_fraction=0",
    "training.evaluation_interval=100",
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example.

    Returns:
        What `evaluate` found.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/enso"), help="folder of all that is made")
    parser.add_argument("--model", type=Path, default=None, help="folder of a trained model: train none")
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="of the windows, the weights and the order")
    parser.add_argument("--backbone", default=None, help="another backbone: name or folder")
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="months to ask about")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting")
    options = parser.parse_args(arguments)

    settings = [
        *SETTINGS,
        f"training.steps={options.steps}",
        f"data.seed={options.seed}",
        f"training.seed={options.seed}",
        f"output.directory={options.output / 'run'}",
        "output.overwrite=true",
        *([] if options.backbone is None else [f"backbone.name={options.backbone}"]),
        *options.set,
    ]
    config = load_config(None, settings)
    folder = options.model or Path(run(config)["model"])
    found = evaluate(load_model(folder, max_new_tokens=24), open_store(config), options.split)
    show(found)
    return found


def evaluate(reader: Reader, store: TrainingStore, split: str = "test") -> dict[str, Any]:
    """Ask about every month of a split.

    Args:
        reader: The model.
        store: The fields, with their splits.
        split: "test" or "validation".

    Returns:
        `months`; `right`: how many of them by who named the state, and `asked_otherwise`: the model by the wording of
        the question; `confusion`: true state -> stated -> months;
        `index_error`: mean absolute error of the Niño 3.4 index by who gave it, °C; `autocorrelation` of the index
        from month to month, and `effective_months`: how many independent ones tell as much; `interval` of the share
        of right months at 95 %, None where there are too few `effective_blocks` of time, and `why_no_interval`;
        `wrong`: month, true index, stated state.
    """
    steps = store.splits.indices(split)
    windows = [store.window(int(step), REGION) for step in steps]
    swapped, donor = swap_values(windows, seed=0)  # place and date stay, values are those of another month
    state, index = (truths(store, steps, kind) for kind in ("enso", "nino34"))
    train_state = truths(store, store.splits.train, "enso")
    before = truths(store, steps - 1, "enso")
    index_before = truths(store, steps - 1, "nino34")

    said, said_index = (ask(reader, windows, question) for question in (ASK_STATE, ASK_INDEX))
    under_swap = ask(reader, swapped, ASK_STATE)
    stated = {
        "model": said,
        "most frequent state of training": [Counter(train_state).most_common(1)[0][0]] * len(steps),
        "state of the month before": before,
        "state of the last training month": [train_state[-1]] * len(steps),
        "model, values of another month": under_swap,
    }
    right = {who: count_equal(names, state) for who, names in stated.items()}
    shown = [state[number] for number in donor if number is not None]
    right["model, values of another month, against these"] = count_equal(under_swap, shown)
    values = np.array(index)
    given = [(value, truth) for value, truth in zip(said_index, index, strict=True) if value is not None]
    rho = float(np.corrcoef(values[1:], values[:-1])[0, 1])
    # Months are right or wrong together at least as long as fields stay alike; all of them tell how long.
    points, floor = SamplePoints.of_windows(windows), field_scales(store)
    right_months = np.array([float(name == truth) for name, truth in zip(said, state, strict=True)])
    sure = interval(points, contributions(right_months), mean, floor=floor)
    return {
        "months": len(steps),
        "right": right,
        "asked_otherwise": {
            question: count_equal(ask(reader, windows, question), state) for question in ASK_OTHERWISE
        },
        "confusion": {
            truth: dict(Counter(str(name) for name, real in zip(said, state, strict=True) if real == truth))
            for truth in STATES
        },
        "index_error": {
            "model": float(np.mean([abs(value - truth) for value, truth in given])) if given else None,
            "normal": float(np.abs(values).mean()),
            "month before": float(np.abs(values - np.array(index_before)).mean()),
        },
        "autocorrelation": rho,
        "effective_months": len(steps) * (1 - rho) / (1 + rho),
        "effective_blocks": sure.effective_blocks,
        "interval": (sure.low, sure.high) if sure.claimed else None,
        "why_no_interval": sure.why,
        "wrong": [
            (str(window.time[-1])[:7], round(value, 2), name)
            for window, value, name, truth in zip(windows, index, said, state, strict=True)
            if name != truth
        ],
    }


def truths(store: TrainingStore, steps: np.ndarray, kind: str) -> list[Any]:
    """What the fields say at some steps: a state or an index."""
    return [extract(store.window(int(step), REGION), kinds=[kind])[0].value for step in steps]


def count_equal(stated: Sequence[Any], true: Sequence[Any]) -> int:
    """In how many months what is stated is what is true."""
    return sum(one == other for one, other in zip(stated, true, strict=True))


def ask(reader: Reader, windows: Sequence[Window], question: str) -> list[Any]:
    """What the model says of each window; None where it states no such fact."""
    kind = "nino34" if question == ASK_INDEX else "enso"
    answers = reader.answer(windows, [question] * len(windows))
    return [
        next((fact.value for fact in parse(text, question) if fact.kind == kind), None) for text in answers
    ]


def show(found: dict[str, Any]) -> None:
    """Print what `evaluate` found."""
    months = found["months"]
    print(f"\n{'ENSO state named by':48s} months right of {months}")
    for who, right in found["right"].items():
        print(f"{who:48s} {right:5d}  {right / months:6.1%}")
    print("\nthe same, asked otherwise:")
    for question, right in found["asked_otherwise"].items():
        print(f"  {question:46s} {right:5d}  {right / months:6.1%}")
    print(f"\n{'true':10s}" + "".join(f"{name:>10s}" for name in (*STATES, "other")))
    for truth, row in found["confusion"].items():
        counts = [row.get(name, 0) for name in STATES]
        print(f"{truth:10s}" + "".join(f"{n:10d}" for n in (*counts, sum(row.values()) - sum(counts))))
    print("\nmean absolute error of the Niño 3.4 index:")
    for who, value in found["index_error"].items():
        print(f"  {who:20s} {'-' if value is None else f'{value:.2f} °C'}")
    print(f"\nwrong (month, true index, stated): {found['wrong']}")
    print(
        f"The index of a month resembles that of the month before (correlation {found['autocorrelation']:.2f}): "
        f"{months} months tell as much as {found['effective_months']:.1f} independent ones."
    )
    if found["interval"] is None:
        print(
            f"No interval is claimed: {found['why_no_interval']} ({found['effective_blocks']:.1f} blocks of time)."
        )
    else:
        print("95 % interval of the share of right months: {:.1%} to {:.1%}".format(*found["interval"]))


if __name__ == "__main__":
    main()
