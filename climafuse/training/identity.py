"""What a run is trained on, wherever its files lie: a run is resumed on the same, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from climafuse.data.store import TrainingStore
from climafuse.data.times import format_time
from climafuse.training.dataset import Examples

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
        for text in examples.texts():
            texts.update("\0".join(text).encode() + b"\0")
        for withheld in examples.withheld():
            texts.update(",".join(withheld).encode() + b"\0")
        for steps, box, num_texts in examples.windows():
            first, last = (format_time(store.time[step]) for step in (steps.start, steps.stop - 1))
            windows.update(f"{first} {last} {box} {num_texts}\n".encode())
        for number in np.unique(np.linspace(0, len(examples) - 1, WINDOWS).astype(int)).tolist():
            window = examples[number].window
            for values in (window.fields, window.latitude, window.longitude):
                fields.update(np.ascontiguousarray(values).data)
    return {
        "the texts": texts.hexdigest(),
        "the times and places of the texts": windows.hexdigest(),
        "the fields": fields.hexdigest(),
    }
