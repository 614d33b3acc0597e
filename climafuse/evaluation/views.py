"""What a model is shown in place of the true field, and against which field its words are scored.

A view gives each window other values; place, time, grid and question stay. If the words come from the fields, the
answers follow the values. If they come from what a model remembers of a place and a season, they do not change.

- true: the field as it is.
- swapped: the values of another window of the same shape.
- blank: no value at all.
- mean_field: the mean of the training fields at the place, of the times that guessers remember (`baselines.py`).
- other_time: the values at the place at another time of the same split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from climafuse.data.store import TrainingStore
from climafuse.data.window import Window
from climafuse.evaluation.baselines import Memory
from climafuse.facts import window_box, withhold

View = list[Window | None]  # one for each window; None where the view has nothing to show


@dataclass(frozen=True)
class Condition:
    """A view and what its answers are scored against.

    Args:
        view: What is shown.
        against_shown: Score against the field shown rather than the true one.
        label: For tables.
        untold: Count questions, too, which the field shown does not answer. Otherwise those are left out: where a donor
            has no sea, silence about the sea is no sign of reading values.
    """

    view: str
    against_shown: bool
    label: str
    untold: bool = False


CONDITIONS: dict[str, Condition] = {
    "true": Condition("true", False, "true field"),
    "shown": Condition("swapped", True, "swapped field, scored against the field shown"),
    "shuffled": Condition("swapped", False, "swapped field, scored against the original"),
    "other_time_shown": Condition("other_time", True, "same place at another time, against the field shown"),
    "other_time": Condition("other_time", False, "same place at another time, against the original"),
    "mean_field": Condition("mean_field", False, "mean training field of the place"),
    "blank": Condition("blank", False, "no field at all", untold=True),
}


def make_views(
    windows: Sequence[Window],
    steps: Sequence[int] | None,
    store: TrainingStore,
    memories: Sequence[Memory | None],
    *,
    seed: int,
) -> dict[str, View]:
    """Make every view of windows.

    Args:
        windows: True fields.
        steps: Steps of the store that are valid times of the split, from which other times are taken; None for
            no such view.
        store: The fields of other times.
        memories: The mean fields of the places, one for each window.
        seed: Of who is given whose values.

    Returns:
        View → windows in the same order.
    """
    swapped, donor = swap_values(windows, seed=seed)
    return {
        "true": list(windows),
        "swapped": [
            None if source is None else window for window, source in zip(swapped, donor, strict=True)
        ],
        "blank": [withhold(window, window.variables) for window in windows],
        "mean_field": [
            None if memory is None else replace(window, fields=memory.mean)
            for window, memory in zip(windows, memories, strict=True)
        ],
        "other_time": _other_times(windows, [] if steps is None else steps, store, seed=seed),
    }


def swap_values(windows: Sequence[Window], *, seed: int) -> tuple[list[Window], list[int | None]]:
    """Give each window the field values of another; place, time and grid stay.

    Args:
        windows: The windows.
        seed: Of who gets whose.

    Returns:
        Windows in the same order; whose values each has, None (and its own) where no other window of its shape is of
        another time or lies elsewhere.
    """
    shapes: dict[tuple[int, ...], list[int]] = {}
    for number, window in enumerate(windows):
        shapes.setdefault(window.fields.shape, []).append(number)
    donor: list[int | None] = [None] * len(windows)
    random = np.random.default_rng(seed)
    for members in shapes.values():
        ring = random.permutation(members)  # each takes from the next: nobody keeps its own
        for here, there in zip(ring.tolist(), np.roll(ring, -1).tolist(), strict=True):
            others = [there] if _are_apart(windows[here], windows[there]) else []
            others = others or [number for number in members if _are_apart(windows[here], windows[number])]
            if others:
                donor[here] = others[int(random.integers(len(others)))]
    swapped = [
        window if source is None else replace(window, fields=windows[source].fields)
        for window, source in zip(windows, donor, strict=True)
    ]
    return swapped, donor


def _are_apart(one: Window, other: Window) -> bool:
    """Whether two windows are of other times, or share no cell."""
    if set(one.time.tolist()).isdisjoint(other.time.tolist()):
        return True
    rows = np.intersect1d(one.latitude, other.latitude)
    columns = np.intersect1d(one.longitude % 360.0, other.longitude % 360.0)
    return not (rows.size and columns.size)


def _other_times(windows: Sequence[Window], steps: Sequence[int], store: TrainingStore, *, seed: int) -> View:
    random = np.random.default_rng(seed)
    views: View = []
    for window in windows:
        others = [step for step in steps if store.time[step] != window.time[-1]]
        if not others:
            views.append(None)
            continue
        step = int(random.choice(others))
        other = store.window(step, window_box(window), len(window.time))
        views.append(replace(window, fields=other.fields))
    return views
