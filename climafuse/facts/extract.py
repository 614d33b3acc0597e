"""From a window to its facts, with numpy. What each kind means is defined in ``kinds.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from climafuse.data.window import Window
from climafuse.facts.climatology import Climatology
from climafuse.facts.kinds import (
    AXES,
    CALM,
    CALM_SPEED,
    ENSO_THRESHOLD,
    EVENTS,
    FACT_KINDS,
    NINO34_LATITUDE,
    NINO34_LONGITUDE,
    SPOKEN_VARIABLES,
    Fact,
    select_kinds,
)

if TYPE_CHECKING:
    import xarray as xr


def extract(
    window: Window | xr.Dataset,
    *,
    kinds: Iterable[str] | None = None,
    climatology: Climatology | xr.Dataset | None = None,
) -> list[Fact]:
    """Every fact of a window, at its valid time (the last) or over its times.

    Missing cells are left out and the weights of the others renormalized; of a variable with no value nothing
    is said. Wind speed is computed from u10 and v10 where ws10 is not given. The definitions are those of
    ``climafuse.facts.kinds``.

    Args:
        window: A window, or a canonical dataset, all of which is taken as one.
        kinds: Names such as "mean" or "mean/t2m"; None for all.
        climatology: Normal fields on the same grid, for anomalies; a dataset is as
            ``Climatology.from_dataset`` takes it.

    Returns:
        Facts in the order of the table of kinds, each key once.

    Raises:
        UsageError: A kind is unknown.
        OutOfRangeError: The climatology lacks cells of the window.
    """
    if not isinstance(window, Window):
        window = Window.from_dataset(window)
    if climatology is not None and not isinstance(climatology, Climatology):
        climatology = Climatology.from_dataset(climatology)
    wanted = None if kinds is None else select_kinds(kinds)
    names = EXTRACTORS.keys() if wanted is None else {kind for kind, _ in wanted}
    summary = summarize(window, climatology)
    return [
        fact
        for name, extractor in EXTRACTORS.items()
        if name in names
        for fact in extractor(summary)
        if wanted is None or (fact.kind, fact.variable) in wanted
    ]


@dataclass(frozen=True, eq=False)
class Summary:
    """What the extractors share: every number that needs a pass over the cells, in spoken units.

    Args:
        window: The window.
        cell: Height and width of a cell, degrees.
        mean: Variable → area-weighted mean at the valid time. The keys of these five are the variables with a
            value.
        change: Variable → mean change from the first time to the last; empty for a single time.
        halves: Variable → means of the north, south, west and east half at the valid time; NaN for an empty
            one.
        extremes: Variable → (lowest, flat index of its cell, highest, flat index of its cell).
        wind: Mean vector (eastward, northward) in m/s, if the window has both components.
        anomaly: Variable → (anomaly [H, W], its area-weighted mean).
    """

    window: Window
    cell: tuple[float, float]
    mean: dict[str, float]
    change: dict[str, float]
    halves: dict[str, tuple[float, float, float, float]]
    extremes: dict[str, tuple[float, int, float, int]]
    wind: tuple[float, float] | None
    anomaly: dict[str, tuple[np.ndarray, float]]


def summarize(window: Window, climatology: Climatology | None = None) -> Summary:
    """Reduce a window over its cells, all variables at once.

    Args:
        window: The window.
        climatology: Normal fields on its grid.

    Returns:
        The summary that extractors read.
    """
    steps, height, width = len(window.time), len(window.latitude), len(window.longitude)
    first_last = (
        window.fields[:: steps - 1] if steps > 1 else window.fields
    )  # only these two times are spoken of
    names = list(window.variables)
    fields = first_last.reshape(len(first_last), len(names), height * width).astype(
        np.float64
    )  # [2 or 1, V, P]
    if "u10" in names and "v10" in names:
        u, v = fields[:, names.index("u10")], fields[:, names.index("v10")]
        extra = [u + 0 * v, v + 0 * u]  # a vector has both components or is missing
        names += ["eastward", "northward"]
        if "ws10" not in names:
            extra.append(np.hypot(u, v))
            names.append("ws10")
        fields = np.concatenate([fields, np.stack(extra, axis=1)], axis=1)  # [2 or 1, V', P]

    weights = _weights(window.latitude, width)  # [P, 5]: all, north, south, west, east
    last = fields[-1]  # [V', P]
    valid = np.isfinite(last)
    complete = bool(valid.all())
    means = _mean(last, weights, None if complete else valid)  # [V', 5]
    lowest = (last if complete else np.where(valid, last, np.inf)).argmin(axis=1)  # [V']
    highest = (last if complete else np.where(valid, last, -np.inf)).argmax(axis=1)
    rows = np.arange(len(names))
    minima, maxima = last[rows, lowest].tolist(), last[rows, highest].tolist()
    lowest_at, highest_at = lowest.tolist(), highest.tolist()
    table = means.tolist()
    changes: list[float] = []
    if steps > 1:
        difference = last - fields[0]
        both = np.isfinite(difference)
        changes = _mean(difference, weights[:, :1], None if both.all() else both)[:, 0].tolist()

    summary = Summary(window, cell_size(window), {}, {}, {}, {}, _wind(names, table), {})
    for index, name in enumerate(names):
        quantity = SPOKEN_VARIABLES.get(name)
        if quantity is None or math.isnan(table[index][0]):
            continue
        scale, offset = quantity.scale, quantity.offset
        mean, north, south, west, east = (value * scale + offset for value in table[index])
        summary.mean[name] = mean
        summary.halves[name] = (north, south, west, east)
        summary.extremes[name] = (
            minima[index] * scale + offset,
            lowest_at[index],
            maxima[index] * scale + offset,
            highest_at[index],
        )
        if changes and not math.isnan(changes[index]):
            summary.change[name] = changes[index] * scale
    if climatology is not None or "sst_anomaly" in summary.mean:
        normal = {} if climatology is None else climatology.on(window)
        _add_anomalies(summary, dict(zip(names, last, strict=True)), normal, weights[:, :1])
    return summary


def _weights(latitude: np.ndarray, width: int) -> np.ndarray:
    """[P, 5] float64: cosine of latitude over all cells and over the north, south, west and east half."""
    height = len(latitude)
    weights = np.zeros((height, width, 5))
    # The cosine of 90° in floating point is tiny, and negative where rounding left a little more than 90.
    weights[..., 0] = np.maximum(np.cos(np.deg2rad(latitude)), 1e-12)[:, None]
    middle = (latitude[0] + latitude[-1]) / 2
    weights[..., 1] = weights[..., 0] * (latitude > middle + 1e-9)[:, None]
    weights[..., 2] = weights[..., 0] * (latitude < middle - 1e-9)[:, None]
    weights[:, : width // 2, 3] = weights[:, : width // 2, 0]
    weights[:, (width + 1) // 2 :, 4] = weights[:, (width + 1) // 2 :, 0]
    return weights.reshape(height * width, 5)


def _mean(fields: np.ndarray, weights: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Weighted means over cells.

    Args:
        fields: [V, P].
        weights: [P, N].
        valid: [V, P], or None where every cell is.

    Returns:
        [V, N], NaN where there is no weight.
    """
    if valid is None:
        sums, total = fields @ weights, weights.sum(axis=0)
    else:
        sums, total = np.where(valid, fields, 0.0) @ weights, valid.astype(np.float64) @ weights
    return np.divide(
        sums, total, out=np.full(sums.shape, np.nan), where=np.broadcast_to(total > 0, sums.shape)
    )


def cell_size(window: Window) -> tuple[float, float]:
    """Height and width of a cell in degrees; a window of one row takes its height from its width."""
    latitude, longitude = window.latitude, window.longitude
    height = (float(latitude[-1]) - float(latitude[0])) / (len(latitude) - 1) if len(latitude) > 1 else 0.0
    east = (float(longitude[-1]) - float(longitude[0])) % 360.0
    width = east / (len(longitude) - 1) if len(longitude) > 1 else 0.0
    return round(height or width or 1.0, 4), round(width or height or 1.0, 4)


def _wind(names: list[str], means: list[list[float]]) -> tuple[float, float] | None:
    if "eastward" not in names:
        return None
    eastward, northward = means[names.index("eastward")][0], means[names.index("northward")][0]
    return None if math.isnan(eastward) else (eastward, northward)


def _add_anomalies(
    summary: Summary, fields: dict[str, np.ndarray], normal: dict[str, np.ndarray], weights: np.ndarray
) -> None:
    """Fill ``summary.anomaly``: fields − normal, [H, W] in spoken units."""
    shape = (len(summary.window.latitude), len(summary.window.longitude))
    # A field of anomalies goes before one that would have to be compared with a climatology.
    for name, base in (("sst_anomaly", "sst"), *((name, name) for name in normal if name != "sst_anomaly")):
        if name not in summary.mean or base in summary.anomaly or base not in FACT_KINDS["anomaly"].rules:
            continue
        anomaly = fields[name] - normal[name].reshape(-1) if name in normal else fields[name]  # [P]
        anomaly = anomaly * SPOKEN_VARIABLES[name].scale
        mean = float(_mean(anomaly[None], weights, np.isfinite(anomaly)[None])[0, 0])
        if not math.isnan(mean):
            summary.anomaly[base] = (anomaly.reshape(shape), mean)


def _means(summary: Summary) -> Iterable[Fact]:
    rules = FACT_KINDS["mean"].rules
    return [Fact("mean", name, value) for name, value in summary.mean.items() if name in rules]


def _maxima(summary: Summary) -> Iterable[Fact]:
    rules = FACT_KINDS["maximum"].rules
    return [
        Fact("maximum", name, extremes[2]) for name, extremes in summary.extremes.items() if name in rules
    ]


def _minima(summary: Summary) -> Iterable[Fact]:
    rules = FACT_KINDS["minimum"].rules
    return [
        Fact("minimum", name, extremes[0]) for name, extremes in summary.extremes.items() if name in rules
    ]


def _maximum_positions(summary: Summary) -> Iterable[Fact]:
    return _positions(summary, "maximum_position", 3)


def _minimum_positions(summary: Summary) -> Iterable[Fact]:
    return _positions(summary, "minimum_position", 1)


def _positions(summary: Summary, kind: str, index: int) -> Iterable[Fact]:
    latitude, longitude = summary.window.latitude.tolist(), summary.window.longitude.tolist()
    facts = []
    for name, extremes in summary.extremes.items():
        if name not in FACT_KINDS[kind].rules:
            continue
        if extremes[2] - extremes[0] >= 10.0 ** -SPOKEN_VARIABLES[name].decimals:
            row, column = divmod(int(extremes[index]), len(longitude))
            facts.append(Fact(kind, name, (latitude[row], longitude[column]), (), summary.cell))
    return facts


def _direction(summary: Summary) -> Iterable[Fact]:
    if summary.wind is None:
        return []
    u, v = summary.wind
    if math.hypot(u, v) < CALM_SPEED:
        return [Fact("direction", "wd10", CALM)]
    return [Fact("direction", "wd10", (180.0 + math.degrees(math.atan2(u, v))) % 360.0)]


def _changes(summary: Summary) -> Iterable[Fact]:
    rules = FACT_KINDS["change"].rules
    return [Fact("change", name, value) for name, value in summary.change.items() if name in rules]


def _tendencies(summary: Summary) -> Iterable[Fact]:
    facts = []
    for name, change in summary.change.items():
        if name not in FACT_KINDS["tendency"].rules:
            continue
        margin = SPOKEN_VARIABLES[name].margin
        trend = "rising" if change >= margin else "falling" if change <= -margin else "steady"
        facts.append(Fact("tendency", name, trend))
    return facts


_AXIS_QUALIFIERS = {axis: (("axis", axis),) for axis in AXES}
_EVENT_QUALIFIERS = {event: (("event", event),) for event in EVENTS}


def _comparisons(summary: Summary) -> Iterable[Fact]:
    facts = []
    # A window that closes on itself has no west and east: they would be a matter of where it was cut.
    width = summary.cell[1] * len(summary.window.longitude)
    axes = [axis for axis in AXES if axis == "north-south" or width < 360.0 - summary.cell[1] / 2]
    for name, halves in summary.halves.items():
        if name not in FACT_KINDS["comparison"].rules:
            continue
        margin = SPOKEN_VARIABLES[name].margin
        for axis in axes:
            first, second = halves[:2] if axis == "north-south" else halves[2:]
            difference = first - second
            if math.isnan(difference):
                continue
            north_west, south_east = AXES[axis]
            higher = north_west if difference >= margin else south_east if difference <= -margin else "equal"
            facts.append(Fact("comparison", name, higher, _AXIS_QUALIFIERS[axis]))
    return facts


def _events(summary: Summary) -> Iterable[Fact]:
    facts = []
    for name, event in EVENTS.items():
        if event.variable in summary.extremes:
            lowest, _, highest, _ = summary.extremes[event.variable]
            happens = lowest < event.threshold if event.below else highest >= event.threshold
            qualifiers = _EVENT_QUALIFIERS.get(name) or (("event", name),)
            facts.append(Fact("event", event.variable, "yes" if happens else "no", qualifiers))
    return facts


def _anomalies(summary: Summary) -> Iterable[Fact]:
    return [Fact("anomaly", name, mean) for name, (_, mean) in summary.anomaly.items()]


def _anomaly_classes(summary: Summary) -> Iterable[Fact]:
    return [
        Fact("anomaly_class", name, _anomaly_class(name, mean)) for name, (_, mean) in summary.anomaly.items()
    ]


def _anomaly_class(name: str, anomaly: float) -> str:
    normal = SPOKEN_VARIABLES[name].normal
    assert normal is not None  # anomalies are made only where it is given
    near, far = normal
    if abs(anomaly) < near:
        return "near normal"
    side = "above normal" if anomaly > 0 else "below normal"
    return f"well {side}" if abs(anomaly) >= far else side


def _nino34(summary: Summary) -> Iterable[Fact]:
    index = nino34(summary)
    return [] if index is None else [Fact("nino34", "sst", index)]


def _enso(summary: Summary) -> Iterable[Fact]:
    index = nino34(summary)
    if index is None:
        return []
    state = "El Niño" if index >= ENSO_THRESHOLD else "La Niña" if index <= -ENSO_THRESHOLD else "neutral"
    return [Fact("enso", "sst", state)]


def nino34(summary: Summary) -> float | None:
    """Anomaly of sea surface temperature over the Niño 3.4 region, in K.

    Args:
        summary: Of a window with an anomaly of sea surface temperature.

    Returns:
        Area-weighted mean over the cells whose center lies within 5°S to 5°N, 170°W to 120°W; None where the
        window cuts off a cell of that box, or fewer than half of its cells have a value.
    """
    if "sst" not in summary.anomaly:
        return None
    latitude, longitude = summary.window.latitude, summary.window.longitude
    height, width = summary.cell
    south, north = NINO34_LATITUDE
    rows = (latitude >= south) & (latitude <= north)
    from_west = (longitude - NINO34_LONGITUDE[0]) % 360.0  # [W] degrees east of the western edge
    span = NINO34_LONGITUDE[1] - NINO34_LONGITUDE[0]
    columns = from_west <= span
    if not rows.any() or not columns.any():
        return None
    # The next row or column beyond those of the window would have its center outside the box.
    if latitude[rows][0] - height >= south or latitude[rows][-1] + height <= north:
        return None
    if from_west[columns].min() >= width or from_west[columns].max() + width <= span:
        return None
    anomaly = summary.anomaly["sst"][0][np.ix_(rows, columns)]
    valid = np.isfinite(anomaly)
    if valid.mean() < 0.5:
        return None
    weights = np.broadcast_to(np.cos(np.deg2rad(latitude[rows]))[:, None], anomaly.shape)
    return float((anomaly[valid] * weights[valid]).sum() / weights[valid].sum())


Extractor = Callable[[Summary], Iterable[Fact]]

EXTRACTORS: dict[str, Extractor] = {
    "mean": _means,
    "maximum": _maxima,
    "minimum": _minima,
    "maximum_position": _maximum_positions,
    "minimum_position": _minimum_positions,
    "direction": _direction,
    "change": _changes,
    "tendency": _tendencies,
    "comparison": _comparisons,
    "event": _events,
    "anomaly": _anomalies,
    "anomaly_class": _anomaly_classes,
    "nino34": _nino34,
    "enso": _enso,
}
