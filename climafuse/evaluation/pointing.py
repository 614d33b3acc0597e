"""The pointing game: does attribution point into the box that decides the fact?

A map hits if its highest cell lies in the planted box or next to it; of several cells that are equally high, the share
of them that does. A map without any difference, as of a model that does not read the fields, so scores what a random
cell would: the share of the window that the box takes up.

Two levels of chance are reported beside the share of hits: that area, and the hits of the same maps against the boxes
of other windows, which a method reaches that favors some part of every window. Only windows count of which the model
says the planted fact rightly: where it is wrong, there is no right place to point to.

Reference:
    Zhang et al. 2018, Top-down Neural Attention by Excitation Backprop, IJCV 126, section 4.1 (arXiv:1608.00507).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from climafuse.evaluation.attribution import attention, check_hiding, occlusion
from climafuse.evaluation.planting import Planted
from climafuse.facts import agrees, parse
from climafuse.model.inference import Reader

TOLERANCE = 1  # cells: what a spoken position is allowed, too
METHODS = ("attention", "occlusion")
_Z95 = 1.959964  # of the normal distribution, two sides


@dataclass(frozen=True)
class Pointing:
    """How often the maps of one method point into the box.

    Args:
        hits: Windows that it points into the box in; a map with several highest cells adds a share.
        num: Windows with a map.
        area: Chance: mean share of the window that the box and its margin take up.
        elsewhere: Chance: share of hits against the boxes of other windows; NaN where there are none.
    """

    hits: float
    num: int
    area: float
    elsewhere: float

    @property
    def accuracy(self) -> float:
        """Share of hits; NaN where there is no map."""
        return self.hits / self.num if self.num else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Of the accuracy, 95 %, windows taken as independent (Wilson 1927, JASA 22, 209-212)."""
        if not self.num:
            return math.nan, math.nan
        n, p, z = self.num, self.accuracy, _Z95
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        reach = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return max(middle - reach, 0.0), min(middle + reach, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; None for NaN."""
        figures = {
            "accuracy": self.accuracy,
            "interval": list(self.interval) if self.num else None,
            "hits": self.hits,
            "num": self.num,
            "chance_area": self.area,
            "chance_other_boxes": self.elsewhere,
        }
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in figures.items()
        }


@dataclass(frozen=True)
class PointingGame:
    """The pointing game of a model.

    Args:
        table: Signal, or "all" → method → its pointing. A method that has no map of any window is not there.
        planted: Signal, or "all" → how many windows there were.
        right: Signal, or "all" → of how many the model says the planted fact rightly.
    """

    table: dict[str, dict[str, Pointing]]
    planted: dict[str, int]
    right: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            name: {
                "planted": self.planted[name],
                "right": self.right[name],
                **{method: pointing.to_dict() for method, pointing in row.items()},
            }
            for name, row in self.table.items()
        }


def pointing_game(
    reader: Reader,
    planted: Sequence[Planted],
    *,
    only_right: bool = True,
    fill: str = "mean",
    sizes: Sequence[int] | None = None,
    windows_per_batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> PointingGame:
    """Ask a model about planted windows, and see where attention and occlusion point.

    Args:
        reader: Model and processor.
        planted: From `plant`.
        only_right: Look at the model's answer where it is right; False: at the right answer in every window, which is
            for models that answer nothing rightly, and should be at chance.
        fill: See `occlusion`.
        sizes: See `occlusion`.
        windows_per_batch: Windows asked about at a time.
        progress: Called with how many windows are done and how many there are.

    Returns:
        The game.

    Raises:
        UsageError: The fill is unknown, or a size is not from 1 to the side of the windows.
    """
    for one in planted:  # also where no answer turns out to be right
        check_hiding(one.window, fill, sizes)
    answers = [one.answer for one in planted]
    if only_right:
        answers = []
        for first in range(0, len(planted), windows_per_batch):
            part = planted[first : first + windows_per_batch]
            answers += reader.answer([one.window for one in part], [one.prompt for one in part])
    right = [
        any(agrees(said, one.fact) for said in parse(text, one.prompt, key=one.fact.key))
        for one, text in zip(planted, answers, strict=True)
    ]
    counted = [number for number, good in enumerate(right) if good or not only_right]
    maps: dict[str, dict[int, np.ndarray]] = {method: {} for method in METHODS}
    for done, number in enumerate(counted):
        one, text = planted[number], answers[number]
        said = next(
            (fact for fact in parse(text, one.prompt, key=one.fact.key) if fact.key == one.fact.key), None
        )
        asked = one.window, one.prompt, text, said
        looked = attention(reader, *asked)
        if looked is not None:
            maps["attention"][number] = looked.share.sum(axis=0)
        maps["occlusion"][number] = occlusion(reader, *asked, fill=fill, sizes=sizes).drop
        if progress is not None:
            progress(done + 1, len(counted))
    names = list(dict.fromkeys(one.signal for one in planted))
    groups = {
        name: [number for number, one in enumerate(planted) if name in ("all", one.signal)]
        for name in [*names, "all"]
    }
    return PointingGame(
        table={
            name: {
                method: pointing(
                    [found[number] for number in numbers if number in found],
                    [planted[number].box for number in numbers if number in found],
                )
                for method, found in maps.items()
                if found
            }
            for name, numbers in groups.items()
        },
        planted={name: len(numbers) for name, numbers in groups.items()},
        right={name: sum(right[number] for number in numbers) for name, numbers in groups.items()},
    )


def pointing(maps: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> Pointing:
    """Compare maps with the boxes they should point into.

    Args:
        maps: N maps [H, W], the larger, the more the answer comes from there.
        boxes: N boxes [H, W] bool, without the margin that is tolerated.
    """
    wide = [widened(box, TOLERANCE) for box in boxes]
    others = [
        hit(map_, box)
        for number, map_ in enumerate(maps)
        for other, box in enumerate(wide)
        if other != number and box.shape == map_.shape
    ]
    return Pointing(
        hits=sum(hit(map_, box) for map_, box in zip(maps, wide, strict=True)),
        num=len(maps),
        area=float(np.mean([box.mean() for box in wide])) if wide else math.nan,
        elsewhere=float(np.mean(others)) if others else math.nan,
    )


def hit(map_: np.ndarray, box: np.ndarray) -> float:
    """Share of the highest cells of a map that lie in a box."""
    top = np.isclose(map_, map_.max(), rtol=1e-6, atol=1e-12)
    return float(box[top].mean())


def widened(box: np.ndarray, cells: int) -> np.ndarray:
    """A rectangle of cells and those at most so many beside it."""
    rows, columns = (np.flatnonzero(box.any(axis=axis)) for axis in (1, 0))
    wide = np.zeros_like(box)
    wide[
        max(rows[0] - cells, 0) : rows[-1] + cells + 1, max(columns[0] - cells, 0) : columns[-1] + cells + 1
    ] = True
    return wide
