"""Train on texts of your own about climate fields, and ask the trained model.

    python examples/own_pairs.py                         # in runs/own_pairs; a few minutes on two cores
    python examples/own_pairs.py --steps 20 --windows 40

It writes a file of climate-text pairs about the bundled ERA5 sample: bulletins written by hand, in wording that
climafuse does not know, beside questions and answers made from facts, since eight bulletins alone teach a model
eight bulletins. Then it trains on that file (`data.pairs`) and asks about a time that was in no pair.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from climafuse import describe, extract, parse, read_pairs, sample_path, score, write_pairs
from climafuse.data.batch import sample_boxes
from climafuse.model.inference import answer, load_model
from climafuse.training import load_config
from climafuse.training.dataset import open_store
from climafuse.training.pipeline import run

BOX = 16.0  # degrees: height and width of what a text is about
HISTORY = 2  # time steps a model sees
ASK = "Write the weather bulletin."
TEST_TIME = "2026-03-31T15:00"  # after the training and validation times

# Rows as they stand in a file of pairs. Times are UTC and must be times of the fields; a place is a name,
# "latitude,longitude", or a box. Pairs that lie in the validation times (here 29 March) choose the best step, and
# pairs in the gaps between the splits are left out.
BULLETINS: list[dict[str, Any]] = [
    {"time": "2026-03-25T14:00", "place": "Paris, FR", "prompt": ASK,
     "text": "A breezy spring afternoon: 10 degrees on average, a northwesterly of 8 metres a second."},
    {"time": "2026-03-28T00:00", "place": "Paris, FR", "prompt": ASK,
     "text": "A cool and quiet night: 5 degrees on average, a northwesterly of 5 metres a second."},
    {"time": "2026-03-27T02:00", "place": "Reykjavík", "prompt": ASK,
     "text": "Stormy around a deep low: minus 1 degree on average, a westerly of 15 metres a second."},
    {"time": "2026-03-25T14:00", "place": "Nairobi", "prompt": ASK,
     "text": "A hot afternoon near the equator: 27 degrees on average, a southeasterly of 2 metres a second."},
    {"time": "2026-03-27T02:00", "place": "Honolulu", "prompt": ASK,
     "text": "Trade-wind weather: 22 degrees on average, a northeasterly of 8 metres a second."},
    {"time": "2026-03-28T00:00", "place": "Chicago", "prompt": ASK,
     "text": "A high builds in: 4 degrees on average, a northwesterly of 5 metres a second."},
    {"time": "2026-03-29T20:00", "place": "Honolulu", "prompt": ASK,
     "text": "Trade-wind weather: 21 degrees on average, a northeasterly of 9 metres a second."},
    {"time": "2026-03-29T20:00", "place": "Chicago", "prompt": ASK,
     "text": "Mild ahead of a front: 15 degrees on average, a southerly of 5 metres a second."},
]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example.

    Returns:
        `pairs` (the file), `trained` (what `run` returns), `texts` (answers) and the `score` of the second.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/own_pairs"), help="folder of pairs and run")
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--windows", type=int, default=400, help="windows described by facts")
    parser.add_argument("--backbone", default=None, help="another backbone: name or folder")
    options = parser.parse_args(arguments)
    pairs = options.output / "pairs.jsonl"
    settings = [
        f"output.directory={options.output}",
        "output.overwrite=true",
        f"data.pairs={pairs}",
        f"data.box_degrees={BOX}",
        f"data.history={HISTORY}",
        f"training.steps={options.steps}",
        f"training.evaluation_interval={options.steps}",
        "training.windows_per_step=16",
    ]
    if options.backbone is not None:
        settings.append(f"backbone.name={options.backbone}")

    write_pairs_file(pairs, options.windows)
    trained = run(load_config(None, settings))

    reader = load_model(trained["model"])
    told = []
    for prompt in (ASK, "What is the mean temperature?"):
        told.append(answer(reader, sample_path("era5"), time=TEST_TIME, location="Honolulu", prompt=prompt))
        print(f"{prompt} {told[-1].text}")
    # Own wording is for the reader to judge. Wording of climafuse reads back as facts, which the fields judge.
    result = score(parse(told[1].text), extract(told[1].window, kinds=["mean/t2m"]))
    print(
        f"Honolulu at {TEST_TIME}, temperature right: {result.f1 == 1}; mean absolute error: {dict(result.errors)}"
    )
    return {"pairs": pairs, "trained": trained, "texts": [one.text for one in told], "score": result}


def write_pairs_file(path: Path, num_windows: int) -> None:
    """Write the bulletins, and questions with answers about windows of the training and validation times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    by_hand = path.with_name("bulletins.jsonl")
    by_hand.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in BULLETINS), encoding="utf-8"
    )
    bulletins = read_pairs(by_hand, size=(BOX, BOX))  # places become boxes; a row that is wrong is named

    store = open_store(load_config(None, [f"data.history={HISTORY}"]))
    number = count(start=len(bulletins))  # of a window; all pairs about it share it
    windows = [
        (next(number), store.window(step, box, HISTORY))
        for split, share in (("train", num_windows), ("validation", max(num_windows // 10, 4)))
        for step, box in sample_boxes(
            store.splits.valid_times(split, history=HISTORY), share, size=(BOX, BOX), seed=0
        )
    ]
    facts = describe(
        windows, kinds=["mean/t2m", "mean/ws10", "direction"], questions_per_window=3, abstentions=0.05
    )
    write_pairs([*bulletins, *facts], path)


if __name__ == "__main__":
    main()
