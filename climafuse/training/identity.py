"""What a run is trained on, wherever its files lie: it is resumed on the same, or not at all, and evaluated on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from climafuse.data.splits import SPLIT_NAMES
from climafuse.data.store import TrainingStore
from climafuse.data.times import format_time
from climafuse.training.dataset import Examples
from climafuse.training.trained_on import TrainedOn

WINDOWS = 64  # of each split, whose values are compared; statistics stand for the rest


def identify(store: TrainingStore, splits: Iterable[Examples]) -> dict[str, str]:
    """Hashes by what they are of, in words for an error.

    Args:
        store: The fields.
        splits: Examples of training and of validation.

    Returns:
        SHA-256 of the texts, of the times and places they are about, and of the fields: the statistics of all of
        them and the values of some windows, so that a large store is not read as a whole.
    """
    texts, windows, fields = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for name in ("mean", "std"):
        fields.update(store.statistics[name].values.tobytes())
    for examples in splits:
        _add_texts(texts, examples)
        for steps, box, num_texts in examples.windows():
            first, last = (format_time(store.time[step]) for step in (steps.start, steps.stop - 1))
            windows.update(f"{first} {last} {box} {num_texts}\n".encode())
        _add_windows(fields, examples)
    return {
        "the texts": texts.hexdigest(),
        "the times and places of the texts": windows.hexdigest(),
        "the fields": fields.hexdigest(),
    }


def describe(store: TrainingStore, splits: Mapping[str, Examples], **more: str) -> TrainedOn:
    """What a run is trained on, from the start of training.

    Args:
        store: The fields.
        splits: Examples by split: of "train", "validation", and "test" where there are any.
        **more: Further hashes of what it is made of.
    """
    texts = bool(store.all_pairs)
    return TrainedOn(
        splits=split_spans(store),
        identity={**more, **identify(store, (splits["train"], splits["validation"]))},
        contents={name: identify_split(examples, texts=texts) for name, examples in splits.items()},
    )


def identify_split(examples: Examples, *, texts: bool) -> str:
    """A hash of what is asked about a split.

    Args:
        examples: Of the split.
        texts: Whether texts are part of the data. Those made from facts are not: another version of climafuse may
            word them otherwise.

    Returns:
        SHA-256 of the times, places and values of some windows, and of all texts.
    """
    found = hashlib.sha256()
    _add_windows(found, examples)
    if texts:
        for steps, box, num_texts in examples.windows():
            found.update(f"{format_time(examples.store.time[steps.stop - 1])} {box} {num_texts}\n".encode())
        _add_texts(found, examples)
    return found.hexdigest()


def split_spans(store: TrainingStore) -> dict[str, tuple[str, str]]:
    """First and last time of each split that has any, as a run records them."""
    splits = {name: store.time[store.splits.indices(name)] for name in SPLIT_NAMES}
    return {name: (format_time(t[0]), format_time(t[-1])) for name, t in splits.items() if len(t)}


def _add_texts(found: Any, examples: Examples) -> None:
    for text in examples.texts():
        found.update("\0".join(text).encode() + b"\0")
    for withheld in examples.withheld():
        found.update(",".join(withheld).encode() + b"\0")


def _add_windows(found: Any, examples: Examples) -> None:
    """Add the values of windows at even distances to a hash."""
    for number in np.unique(np.linspace(0, len(examples) - 1, WINDOWS).astype(int)).tolist():
        window = examples[number].window
        for values in (window.fields, window.latitude, window.longitude):
            found.update(np.ascontiguousarray(values).data)
