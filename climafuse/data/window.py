"""The window: a few fields over a box and a few times, as numpy. Facts, tensors and maps all start from it.

A box holds the cells whose *center* lies in it, west and south edges included, east and north edges not, so
that boxes side by side share no cell and leave none out. Two additions make the rule complete: a box that
reaches the north pole includes the row at 90°, and a center within 1e-4° (about 10 m) of an edge counts as on
it, because file coordinates are often float32. Windows wrap in longitude and stop at the poles.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from climafuse.data.times import TimeLike, as_time_axis, find_time, format_time, parse_time
from climafuse.errors import (
    CanonicalizationError,
    OutOfRangeError,
    PlaceError,
    UsageError,
    VariableNotFoundError,
)

if TYPE_CHECKING:
    import xarray as xr

EDGE = 1e-4  # degrees; a cell center this close to an edge of a box lies on the edge


@dataclass(frozen=True)
class Box:
    """A box of latitude and longitude around a center.

    Args:
        latitude: Of the center, degrees north, in [-90, 90].
        longitude: Of the center, degrees east; any turn of the circle, kept in [0, 360).
        height: South to north, degrees, in (0, 180].
        width: West to east, degrees, in (0, 360].

    Raises:
        PlaceError: The center is not on the globe.
        UsageError: The size is not positive or larger than the globe.
    """

    latitude: float
    longitude: float
    height: float
    width: float

    def __post_init__(self) -> None:
        """Check the values; bring the longitude to [0, 360)."""
        if not (0 < self.height <= 180 and 0 < self.width <= 360):  # NaN is in no range
            raise UsageError(
                "box size",
                expected="height in (0, 180] and width in (0, 360], in degrees",
                received=f"{self.height} by {self.width}",
                remedy="Give the full height and width of the box, not half of it.",
            )
        if not (abs(self.latitude) <= 90 and math.isfinite(self.longitude)):
            raise PlaceError(
                "box center",
                expected="latitude from -90 to 90 and a finite longitude, in degrees",
                received=f"{self.latitude}, {self.longitude}",
                remedy="Give latitude first, then longitude.",
            )
        object.__setattr__(self, "longitude", float(self.longitude) % 360.0 % 360.0)  # -1e-20 % 360 is 360
        object.__setattr__(self, "latitude", float(self.latitude))

    @property
    def south(self) -> float:
        """Southern edge, degrees north, not beyond the pole."""
        return max(self.latitude - self.height / 2, -90.0)

    @property
    def north(self) -> float:
        """Northern edge, degrees north, not beyond the pole."""
        return min(self.latitude + self.height / 2, 90.0)

    @property
    def west(self) -> float:
        """Western edge, degrees east, in [0, 360)."""
        return (self.longitude - self.width / 2) % 360.0 % 360.0

    @property
    def east(self) -> float:
        """Eastern edge, degrees east, in [0, 360); west of ``west`` where the box crosses Greenwich."""
        return (self.longitude + self.width / 2) % 360.0 % 360.0


@dataclass(frozen=True, eq=False)
class Window:
    """Fields over a box and a few times.

    Args:
        fields: [T, V, H, W] float32, SI units, NaN where missing.
        variables: Length V, canonical names.
        time: [T] datetime64[s] (UTC) or cftime dates, ascending; the last is the valid time.
        latitude: [H] float64, degrees north, ascending.
        longitude: [W] float64, degrees east in [0, 360), west to east: a window over Greenwich reads …, 359,
            0, 1, …

    Raises:
        UsageError: The shapes do not fit together.
    """

    fields: np.ndarray
    variables: tuple[str, ...]
    time: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray

    def __post_init__(self) -> None:
        """Check that the shapes fit together."""
        shape = (len(self.time), len(self.variables), len(self.latitude), len(self.longitude))
        if self.fields.shape != shape:
            raise UsageError(
                "fields",
                expected=f"shape {shape} (time, variable, latitude, longitude)",
                received=f"shape {self.fields.shape}",
                remedy="Give one coordinate value for each step along each axis.",
            )

    def field(self, name: str) -> np.ndarray:
        """One variable.

        Args:
            name: Its canonical name.

        Returns:
            [T, H, W], a view.

        Raises:
            VariableNotFoundError: The window does not hold it.
        """
        if name not in self.variables:
            raise _absent(name, self.variables)
        return self.fields[:, self.variables.index(name)]

    def available(self) -> tuple[str, ...]:
        """Names of the variables with any value at all; of the others nothing can be said."""
        valid = ~np.isnan(self.fields).all(axis=(0, 2, 3))  # [V]
        return tuple(name for name, any_value in zip(self.variables, valid, strict=True) if any_value)

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> Window:
        """All of a canonical dataset as one window, loaded.

        Args:
            dataset: Canonical, with dimensions latitude, longitude and time (or one time as a coordinate). A
                variable without time holds at every time.

        Returns:
            The window; variables and longitudes in the order of the dataset.

        Raises:
            CanonicalizationError: A variable has another dimension, such as level, or lacks one.
        """
        dataset = _with_time(dataset)
        variables = tuple(str(name) for name in dataset.data_vars)
        time = as_time_axis(dataset["time"].values)
        latitude = dataset["latitude"].values.astype(np.float64)
        longitude = dataset["longitude"].values.astype(np.float64)
        fields = np.empty(
            (len(time), len(variables), len(latitude), len(longitude)), dtype=np.float32
        )  # [T, V, H, W]
        for index, name in enumerate(variables):
            array = dataset[name]
            array = array.transpose(*(dim for dim in ("time", "latitude", "longitude") if dim in array.dims))
            fields[:, index] = array.values
        return cls(fields, variables, time, latitude, longitude)


def select_window(
    dataset: xr.Dataset,
    *,
    time: TimeLike,
    box: Box | None = None,
    history: int = 1,
    tolerance: np.timedelta64 | None = None,
) -> Window:
    """Cut a window out of a canonical dataset; only what is cut is read.

    Args:
        dataset: Canonical, with dimensions time, latitude, longitude.
        time: The valid time, matched exactly or within the tolerance.
        box: Where; None for everywhere.
        history: Number of steps that end at the valid time. Steps are those of the dataset, evenly spaced or
            not.
        tolerance: Largest distance from the valid time; None for exactly.

    Returns:
        The window. A variable without a single value in it is still there, as NaN.

    Raises:
        OutOfRangeError: The time, the history or the box lies outside the fields.
        CanonicalizationError: A variable has other dimensions.
    """
    dataset = _with_time(dataset)
    times = as_time_axis(dataset["time"].values)
    steps = locate_history(times, find_time(times, time, tolerance=tolerance), history)
    rows, columns = Grid(dataset["latitude"].values, dataset["longitude"].values).locate(box)
    part = dataset.isel(time=steps, latitude=rows)
    # Slices rather than an index array: every file backend reads them in one piece.
    pieces = [Window.from_dataset(part.isel(longitude=piece)) for piece in columns]
    if len(pieces) == 1:
        return pieces[0]
    return Window(
        np.concatenate([piece.fields for piece in pieces], axis=-1),
        pieces[0].variables,
        pieces[0].time,
        pieces[0].latitude,
        np.concatenate([piece.longitude for piece in pieces]),
    )


def locate_history(times: np.ndarray, index: int, history: int) -> slice:
    """Which steps of a time axis make the history of a valid time.

    Args:
        times: [T] the axis.
        index: Of the valid time.
        history: Number of steps that end there.

    Returns:
        The steps.

    Raises:
        OutOfRangeError: The history would begin before the first time.
        UsageError: The history is not at least one step.
    """
    if history < 1:
        raise UsageError(
            "history",
            expected="at least 1 step",
            received=history,
            remedy="A history of 1 is the valid time alone.",
        )
    if not 0 <= index < len(times):
        raise OutOfRangeError(
            "time index",
            expected=f"0 to {len(times) - 1}, {format_time(times[0])} to {format_time(times[-1])}",
            received=index,
            remedy="Choose a time of the fields.",
        )
    if index - history + 1 < 0:
        available = "no time at all: the fields hold too few steps"
        if history <= len(times):
            available = f"a valid time from {format_time(times[history - 1])} to {format_time(times[-1])}"
        raise OutOfRangeError(
            "history",
            expected=f"{available}, for {history} steps of history within {format_time(times[0])} to "
            f"{format_time(times[-1])}",
            received=format_time(times[index]),
            remedy="Choose a later time, or fields that begin earlier.",
        )
    return slice(index - history + 1, index + 1)


def locate_range(
    times: np.ndarray, first: TimeLike, last: TimeLike, *, tolerance: np.timedelta64 | None = None
) -> slice:
    """Which steps of a time axis lie in a range of time, both ends included.

    Args:
        times: [T] the axis.
        first: Beginning of the range.
        last: End of the range.
        tolerance: How far outside the range a step may lie; None for not at all.

    Returns:
        The steps, at least one.

    Raises:
        OutOfRangeError: The range holds no step, or reaches beyond the axis by more than its typical step.
    """
    begin, end = (parse_time(time, like=times) for time in (first, last))
    slack: Any = np.timedelta64(0, "s") if tolerance is None else tolerance
    if times.dtype == object:
        slack = slack.astype("timedelta64[s]").item()
    start = int(np.searchsorted(times, begin - slack, side="left"))
    stop = int(np.searchsorted(times, end + slack, side="right"))
    if start < stop:
        if times[0] <= begin and end <= times[-1]:
            return slice(start, stop)
        # Of the whole axis: only where it matters, as a hundred thousand pairs come through here.
        beyond = slack + (np.median(np.diff(times)) if len(times) > 1 else end - end)
        if begin >= times[0] - beyond and end <= times[-1] + beyond:
            return slice(start, stop)
    covered = f"{format_time(times[0])} to {format_time(times[-1])}"
    raise OutOfRangeError(
        "time",
        expected=f"a range of time that the fields cover, {covered}",
        received=f"{format_time(begin)} to {format_time(end)}",
        remedy="Choose a range within the fields that holds at least one of their times.",
    )


class Grid:
    """Rows and columns of a grid, and which of them lie in a box. The only place where this is worked out.

    Args:
        latitude: [H] degrees north, ascending.
        longitude: [W] degrees east, ascending in [0, 360).
    """

    def __init__(self, latitude: np.ndarray, longitude: np.ndarray) -> None:
        # Bisecting plain lists takes a hundredth of the time NumPy needs: this runs once for every sample.
        self._latitude: list[float] = latitude.tolist()
        self._longitude: list[float] = longitude.tolist()
        self._spacing = (_spacing(latitude), _spacing(longitude))
        seam = self._longitude[0] + 360 - self._longitude[-1]
        self._wraps = max([seam, *np.diff(longitude)]) <= 1.5 * self._spacing[1]

    def centers(self, height: float, width: float) -> Box | None:
        """Where centers of boxes may lie so that nothing but a pole cuts a box off.

        Args:
            height: Of the boxes, degrees.
            width: Likewise.

        Returns:
            The area; None for the whole sphere. Along a side that is shorter than a box, its middle half.
        """
        step_north, step_east = self._spacing
        south, north = self._latitude[0] - step_north / 2, self._latitude[-1] + step_north / 2
        if self._wraps and south <= -90 and north >= 90:
            return None
        whole = north - south
        inner_south = south if south <= -90 else south + min(height / 2, whole / 4)
        inner_north = north if north >= 90 else north - min(height / 2, whole / 4)
        inner_south, inner_north = max(inner_south, -90.0), min(inner_north, 90.0)
        west, extent = 0.0, 360.0
        if not self._wraps:
            columns = self._longitude
            gaps = [east - here for here, east in zip(columns, [*columns[1:], columns[0] + 360], strict=True)]
            first = (gaps.index(max(gaps)) + 1) % len(columns)  # east of the widest gap the grid begins
            extent = 360 - max(gaps) + step_east
            margin = min(width / 2, extent / 4)
            west, extent = columns[first] - step_east / 2 + margin, extent - 2 * margin
        return Box((inner_south + inner_north) / 2, west + extent / 2, inner_north - inner_south, extent)

    def extent(self) -> tuple[float, float]:
        """Height and width of the whole grid in degrees, from the outer edge of its first cell to that of its last."""
        step_north, step_east = self._spacing
        south, north = self._latitude[0] - step_north / 2, self._latitude[-1] + step_north / 2
        height = min(north, 90.0) - max(south, -90.0)
        columns = self._longitude
        gaps = [east - here for here, east in zip(columns, [*columns[1:], columns[0] + 360], strict=True)]
        return height, 360.0 if self._wraps else 360 - max(gaps) + step_east

    def locate(self, box: Box | None) -> tuple[slice, tuple[slice, ...]]:
        """Which rows and columns lie in a box.

        A grid that covers a region only cuts the box off at its edge, as a pole does, as long as the center
        of the box is covered.

        Args:
            box: The box; None for the whole grid.

        Returns:
            The rows, and the columns from west to east in one slice, or two where the window wraps.

        Raises:
            OutOfRangeError: The center lies outside the grid, or the box holds no cell.
        """
        rows, columns = self._latitude, self._longitude
        if box is None:
            return slice(0, len(rows)), (slice(0, len(columns)),)
        self._check_covered(box)
        north = box.latitude + box.height / 2
        first = bisect_left(rows, box.latitude - box.height / 2 - EDGE)
        # A box that reaches the pole takes the row at the pole: no box further north could.
        last = len(rows) if north >= 90 - EDGE else bisect_left(rows, north - EDGE)
        west = (box.longitude - box.width / 2 - EDGE) % 360.0
        start = bisect_left(columns, west)
        if box.width >= 360 - EDGE:
            stop = start + len(columns)
        else:
            turns, east = divmod(west + box.width, 360.0)
            stop = bisect_left(columns, east) + int(turns) * len(columns)
        if last <= first or stop <= start:
            raise OutOfRangeError(
                "box",
                expected="a box that holds the center of at least one grid cell",
                received=f"{box.height:g} by {box.width:g} degrees around {_spoken(box)}",
                remedy=f"Make the box larger than the grid spacing, about {self._spacing[0]:g} degrees.",
            )
        if start == len(columns):  # the western edge lies between the last column and the first
            start, stop = 0, stop - len(columns)
        if stop <= len(columns):
            return slice(first, last), (slice(start, stop),)
        return slice(first, last), (slice(start, len(columns)), slice(0, stop - len(columns)))

    def _check_covered(self, box: Box) -> None:
        """A cell reaches half the grid spacing to either side, an outermost row as far as a pole near by."""
        rows, columns = self._latitude, self._longitude
        reach, side = self._spacing[0], self._spacing[1] / 2 + EDGE
        south = -90.0 if rows[0] - reach <= -90 else rows[0] - reach / 2 - EDGE
        north = 90.0 if rows[-1] + reach >= 90 else rows[-1] + reach / 2 + EDGE
        if south <= box.latitude <= north and (
            self._wraps or any(abs((column - box.longitude + 180) % 360 - 180) <= side for column in columns)
        ):
            return
        raise OutOfRangeError(
            "place",
            expected=f"a place within the fields, latitude {rows[0]:g} to {rows[-1]:g}, "
            f"longitude {columns[0]:g} to {columns[-1]:g}",
            received=_spoken(box),
            remedy="Choose a place the fields cover, or fields that cover the place.",
        )


def _spacing(coordinate: np.ndarray) -> float:
    """Typical spacing in degrees; the median passes over the gap of a region stored across Greenwich."""
    return float(np.median(np.diff(coordinate))) if len(coordinate) > 1 else 2 * EDGE


def _spoken(box: Box) -> str:
    return f"latitude {box.latitude:g}, longitude {box.longitude:g}"


def _with_time(dataset: xr.Dataset) -> xr.Dataset:
    """Check the dimensions; one time given as a plain coordinate becomes a dimension."""
    allowed = {"time", "latitude", "longitude"}
    for name, array in dataset.data_vars.items():
        if not {"latitude", "longitude"} <= set(array.dims) <= allowed:
            raise CanonicalizationError(
                str(name),
                expected="dimensions time, latitude, longitude",
                received=", ".join(map(str, array.dims)) or "none",
                remedy="Open the file with open_climate; choose one level or member where there are several.",
            )
    if "time" in dataset.dims:
        return dataset
    if "time" not in dataset.coords:
        raise CanonicalizationError(
            "time",
            expected="a time coordinate",
            received=", ".join(map(str, dataset.coords)) or "no coordinates",
            remedy="Open the file with open_climate, which makes coordinates canonical.",
        )
    return dataset.expand_dims("time")


def _absent(name: str, variables: Sequence[str]) -> VariableNotFoundError:
    return VariableNotFoundError(
        name,
        expected=f"one of {', '.join(variables)}",
        received="a variable the fields do not hold",
        remedy="Choose one of these, or open the source with the variable.",
    )
