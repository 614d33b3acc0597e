"""The map to choose a place on: one field over all of its grid, the coast, and the box that was chosen.

The picture is the map from edge to edge, in degrees at equal steps, so that a point on it has a latitude and longitude.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from climafuse.data.window import Box, Window
from climafuse.errors import UsageError
from climafuse.report.coastlines import coast_in

_INK = "#1b2733"
_MISSING = "#d5d8dc"
_CHOSEN = "#ffd23f"
_WIDTH, _HEIGHT, _DPI = 7.2, 5.4, 150  # inches, at most
_MOST_CELLS = 400  # drawn along a side: a finer grid shows no more on a screen
_FINE_COAST_BELOW = 70.0  # degrees of longitude
_LINES = (1, 2, 5, 10, 15, 30)  # degrees between lines of the graticule


def draw_locator(window: Window, variable: str, box: Box, *, place: tuple[float, float]) -> bytes:
    """Draw the map.

    Args:
        window: All of the grid. The last time is drawn.
        variable: Canonical name of the field that colors the map.
        box: The chosen box.
        place: Latitude and longitude of the chosen place.

    Returns:
        A WebP picture, on which `point_at` finds places.
    """
    west, east, south, north = _extent(window.latitude, window.longitude)
    order = np.argsort(_unwrapped(window.longitude, west), kind="stable")
    turned = replace(window, fields=window.fields[..., order], longitude=window.longitude[order])
    shape = (east - west) / (north - south)
    width, height = (_WIDTH, _WIDTH / shape) if shape >= _WIDTH / _HEIGHT else (_HEIGHT * shape, _HEIGHT)

    with mpl.rc_context({"font.family": "sans-serif", "font.size": 8, "axes.facecolor": _MISSING}):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        _draw_field(axes, turned, variable, (west, east, south, north))
        coast = list(coast_in(west, east, south, north, "50m" if east - west < _FINE_COAST_BELOW else "110m"))
        axes.add_collection(LineCollection(coast, colors="white", linewidths=1.6, alpha=0.6))
        axes.add_collection(LineCollection(coast, colors=_INK, linewidths=0.7))
        axes.set(xlim=(west, east), ylim=(south, north), aspect="auto", xticks=[], yticks=[])
        _draw_graticule(axes, west, east, south, north)
        _draw_choice(axes, box, place, west)
        file = io.BytesIO()
        figure.savefig(file, format="webp", dpi=_DPI)
    return file.getvalue()


def point_at(latitude: np.ndarray, longitude: np.ndarray, x: float, y: float) -> tuple[float, float]:
    """The point of the globe at a point of the map.

    Args:
        latitude: [H] of the grid that the map shows, degrees north.
        longitude: [W] likewise, degrees east.
        x: From the left edge, as a share of the width.
        y: From the upper edge, as a share of the height.

    Returns:
        Latitude and longitude in degrees.

    Raises:
        UsageError: The point is not on the map.
    """
    for argument, value in (("x", x), ("y", y)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1:  # NaN is in no range
            raise UsageError(
                argument,
                expected="a point on the map, from 0 to 1",
                received=value if number else f"a {type(value).__name__}",
                remedy="Choose a place on the map, or type it.",
            )
    west, east, south, north = _extent(latitude, longitude)
    return north - y * (north - south), west + x * (east - west)


def _extent(latitude: np.ndarray, longitude: np.ndarray) -> tuple[float, float, float, float]:
    """West, east, south and north of a grid, in one run of longitudes; the globe is cut at 180°W."""
    rows = _edges(np.sort(latitude))
    south, north = max(float(rows[0]), -90.0), min(float(rows[-1]), 90.0)
    ordered = np.sort(longitude % 360)
    gaps = np.diff(ordered, append=ordered[0] + 360)
    spacing = float(np.median(np.diff(ordered))) if len(ordered) > 1 else 1.0
    widest = int(gaps.argmax())
    if gaps[widest] <= 1.5 * spacing:
        return -180.0, 180.0, south, north
    columns = _edges(_unwrapped(ordered, ordered[(widest + 1) % len(ordered)])[_run(ordered, widest)])
    west = (columns[0] + 180) % 360 - 180
    return float(west), float(west + columns[-1] - columns[0]), south, north


def _run(ordered: np.ndarray, widest: int) -> np.ndarray:
    """Order of the columns that begins east of the widest gap."""
    return np.roll(np.arange(len(ordered)), -(widest + 1))


def _unwrapped(longitude: np.ndarray, west: float) -> np.ndarray:
    """Longitudes in the turn that begins at the western edge."""
    return west + (np.asarray(longitude, dtype=np.float64) - west) % 360


def _edges(centers: np.ndarray) -> np.ndarray:
    """Edges halfway between centers; a lone cell is one degree wide."""
    if len(centers) == 1:
        return np.array([centers[0] - 0.5, centers[0] + 0.5])
    middle = (centers[:-1] + centers[1:]) / 2
    return np.concatenate([[2 * centers[0] - middle[0]], middle, [2 * centers[-1] - middle[-1]]])


def _draw_field(axes: Axes, window: Window, variable: str, extent: tuple[float, float, float, float]) -> None:
    rows, columns = (max(1, len(axis) // _MOST_CELLS) for axis in (window.latitude, window.longitude))
    values = window.field(variable)[-1, ::rows, ::columns]
    low, high = np.nanpercentile(values, [1, 99])
    if "anomaly" in variable:
        high = max(abs(low), abs(high))
        low = -high
    if not low < high:
        low, high = low - 1, high + 1
    axes.pcolormesh(
        _edges(_unwrapped(window.longitude[::columns], extent[0])),
        _edges(window.latitude[::rows]),
        np.ma.masked_invalid(values),
        cmap="RdBu_r" if "anomaly" in variable else "viridis",
        vmin=low,
        vmax=high,
        alpha=0.8,
        rasterized=True,
    )


def _draw_graticule(axes: Axes, west: float, east: float, south: float, north: float) -> None:
    step = next((step for step in _LINES if (east - west) / step <= 12), 60)
    halo = [withStroke(linewidth=2, foreground="white", alpha=0.8)]
    style: dict[str, Any] = {"color": "white", "linewidth": 0.5, "alpha": 0.5}
    for line in np.arange(np.ceil(west / step) * step, east, step):
        axes.axvline(line, **style)
        around = round((line + 180) % 360 - 180, 6)
        if west + 0.03 * (east - west) < line < east - 0.03 * (east - west):
            axes.annotate(
                f"{abs(around):g}°{'W' if around < 0 else 'E' if 0 < around < 180 else ''}",
                (line, south), (0, 3), textcoords="offset points", ha="center", color=_INK, path_effects=halo,
            )  # fmt: skip
    for line in np.arange(np.ceil(south / step) * step, north, step):
        axes.axhline(line, **style)
        if south + 0.06 * (north - south) < line < north - 0.03 * (north - south):
            axes.annotate(
                f"{abs(line):g}°{'S' if line < 0 else 'N' if line > 0 else ''}",
                (west, line), (3, 0), textcoords="offset points", va="center", color=_INK, path_effects=halo,
            )  # fmt: skip


def _draw_choice(axes: Axes, box: Box, place: tuple[float, float], west: float) -> None:
    """The box and the place, on both sides of the seam where it lies across it."""
    left = float(_unwrapped(np.array(box.west), west))
    at = float(_unwrapped(np.array(place[1]), west))
    for turn in (0.0, -360.0):
        corner = left + turn, box.south
        size = box.width, box.north - box.south
        for color, line in ((_INK, 3.6), (_CHOSEN, 2.0)):
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=line))
        axes.plot(at + turn, place[0], marker="*", markersize=12, color=_CHOSEN, markeredgecolor=_INK)
