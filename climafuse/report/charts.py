"""Curves as scalable paths, so that a page draws them in its own colors and at any width.

Geometry only: places are percentages of the panel, paths are in units of a thousandth of it. The page stretches the
panel, while strokes and letters keep their size, which pictures of a plotting library do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

MOST_POINTS = 400  # of a curve: more than a panel has pixels
LOGARITHMIC_FROM = 8.0  # largest over smallest value
NEAREST = 8.0  # percent of the panel between two ticks: on paper, where it is lowest, a line of text takes 7


@dataclass(frozen=True)
class Curve:
    """Values over steps.

    Args:
        label: What they are.
        style: Class of the page's style sheet.
        points: (x, y) in ascending x.
    """

    label: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Path:
    """A curve in a panel: an SVG path and where its last point is, in percent."""

    label: str
    style: str
    path: str
    marks: str
    last: float
    end: str


@dataclass(frozen=True)
class Chart:
    """Paths with their axes; ticks are (percent from the left or top, text)."""

    paths: tuple[Path, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    logarithmic: bool


def line_chart(curves: Sequence[Curve], *, from_zero: bool = False) -> Chart | None:
    """Lay curves out in one panel.

    Args:
        curves: Those without points are left out.
        from_zero: The vertical axis begins at zero; otherwise it is logarithmic where values span much.

    Returns:
        The chart; None where no curve has two points.
    """
    curves = [curve for curve in curves if curve.points]
    if not any(len(curve.points) > 1 for curve in curves):
        return None
    x, y = (np.array([point[axis] for curve in curves for point in curve.points]) for axis in (0, 1))
    logarithmic = bool(not from_zero and y.min() > 0 and y.max() / y.min() >= LOGARITHMIC_FROM)
    if logarithmic:
        ticks = LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(y.min(), y.max())
        low, high = float(y.min()) / 1.1, float(y.max()) * 1.1
    else:
        low, high = (0.0 if from_zero else float(y.min())), float(y.max())
        ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high if high > low else low + 1)
        low, high = min(low, float(ticks[0])), max(high, float(ticks[-1]))
    first, last = float(x.min()), float(x.max())

    def across(value: np.ndarray) -> np.ndarray:
        return (value - first) / (last - first or 1.0)

    def down(value: np.ndarray) -> np.ndarray:
        value, ends = (np.log(value), np.log([low, high])) if logarithmic else (value, np.array([low, high]))
        return 1 - (value - ends[0]) / (ends[1] - ends[0] or 1.0)

    def laid_out(curve: Curve) -> Path:
        points = np.array(curve.points, dtype=float)  # [N, 2]
        kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).round().astype(int))
        places = np.stack([across(points[kept, 0]), down(points[kept, 1])], axis=1) * 1000
        steps = [f"{left:.1f} {top:.1f}" for left, top in places]
        return Path(
            curve.label,
            curve.style,
            path="M" + "L".join(steps),
            marks="".join(f"M{step}h0" for step in steps) if len(steps) <= 40 else "",
            last=float(places[-1, 1] / 10),
            end=f"{curve.points[-1][1]:.3g}",
        )

    inside = [float(tick) for tick in ticks if low <= tick <= high]
    y_ticks = _apart([(float(down(np.array(t)) * 100), f"{t:.3g}") for t in inside])
    x_ticks = [t for t in MaxNLocator(4, integer=True).tick_values(first, last) if first <= t <= last]
    return Chart(
        paths=tuple(map(laid_out, curves)),
        x_ticks=tuple((float(across(np.array(t)) * 100), f"{t:,.0f}") for t in x_ticks),
        y_ticks=y_ticks,
        logarithmic=logarithmic,
    )


def _apart(ticks: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """Those that leave room for each other, round ones first: of 1, 2 and 5 the powers of ten, then the 5."""
    kept: list[tuple[float, str]] = []
    for tick in sorted(ticks, key=lambda tick: _roundness(tick[1])):
        if all(abs(tick[0] - other[0]) >= NEAREST for other in kept):
            kept.append(tick)
    return tuple(tick for tick in ticks if tick in kept)


def _roundness(words: str) -> int:
    """How round a label is, by its first digit: 0 for a power of ten, 1 for its fives, 2 for its twos."""
    return "152".find(words.lstrip("-0.")[:1])
