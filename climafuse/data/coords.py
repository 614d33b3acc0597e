"""Coordinates made canonical once, then checked; what would need a guess is refused.

Canonical means: latitude in degrees north, ascending; longitude in degrees east, ascending in [0, 360); level
in hPa, ascending; time decoded, ascending, ``datetime64[s]`` in UTC or cftime dates of another calendar. An
``Axis`` says where each canonical value lies in the source, so that fields are put in order when they are
read and not before.

Coordinates are found by CF attributes first (standard name, then units), then by the names that products use,
then by the ``axis`` attribute.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import cftime
import numpy as np
import xarray as xr

from climafuse.data.packing import scale_and_offset
from climafuse.data.times import as_time_axis, format_time
from climafuse.data.variables import LEVELS
from climafuse.errors import CanonicalizationError

# Coordinates closer than this are the same place: file coordinates are often float32 (degrees; about 1 m).
SAME_PLACE = 1e-5
MAX_SECONDS = 1e13  # from the reference of a time axis: 300,000 years
MAX_COORDINATES = 10_000_000  # of one axis: every hour for a thousand years


@dataclass(frozen=True, eq=False)
class Axis:
    """A canonical coordinate and its way back to the source.

    Args:
        name: "time", "level", "latitude" or "longitude".
        dimension: Dimension of the source along which it lies; None for a single value without dimension.
        values: [n] canonical values, ascending.
        positions: [n] index along the dimension of the source of each value.
        twins: Pairs of positions (kept, left out) that stand for the same meridian; their values must be
        equal.
    """

    name: str
    dimension: Hashable | None
    values: np.ndarray
    positions: np.ndarray
    twins: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Kind:
    """How a coordinate is recognized, and which units it may have."""

    name: str
    standard_names: tuple[str, ...]
    units: tuple[str, ...]
    names: tuple[str, ...]
    axis: str


_TIME = _Kind("time", ("time",), (), ("valid_time", "time", "Time", "TIME"), "T")
_LATITUDE = _Kind(
    "latitude",
    ("latitude",),
    ("degrees_north", "degree_north", "degrees_N", "degree_N", "degreesN", "degreeN"),
    ("latitude", "lat", "Latitude", "LAT", "nav_lat", "XLAT"),
    "Y",
)
_LONGITUDE = _Kind(
    "longitude",
    ("longitude",),
    ("degrees_east", "degree_east", "degrees_E", "degree_E", "degreesE", "degreeE"),
    ("longitude", "lon", "Longitude", "LON", "nav_lon", "XLONG"),
    "X",
)
_DEGREES = ("degrees", "degree", "deg")

# Words before "since" -> seconds.
_TIME_STEPS = {
    ("days", "day", "d"): 86400.0,
    ("hours", "hour", "hrs", "hr", "h"): 3600.0,
    ("minutes", "minute", "mins", "min"): 60.0,
    ("seconds", "second", "secs", "sec", "s"): 1.0,
}

# Grids whose own coordinates are latitude and longitude.
_TRUE_GRIDS = ("latitude_longitude", "unknown")

# Pressure levels: names in use and, for those that imply it, the unit (ARCO-ERA5 and WeatherBench write
# none).
_LEVEL_NAMES = {"level": "hPa", "pressure_level": "hPa", "isobaricInhPa": "hPa", "lev": None, "plev": None}
_LEVEL_UNITS = {
    "hPa": 1.0,
    "millibars": 1.0,
    "millibar": 1.0,
    "mbar": 1.0,
    "mb": 1.0,
    "Pa": 0.01,
    "kPa": 10.0,
}
# "level" without a unit may number anything. These are pressures: ERA5's levels above 50 hPa, and what products have
# from there down; a row of them that reaches 50 is neither numbers of layers nor depths near the surface.
_CUSTOMARY_LEVELS = (1, 2, 3, 5, 7, 10, 20, 30, *LEVELS)
_HIGHEST_PRESSURE = (
    1100.0  # hPa; more than at the Dead Sea, far less than any pressure level in Pa read as hPa
)
# What a standard name may say that makes levels no pressures, be their unit hPa (CESM's hybrid levels), and what a
# long name may: servers of GrADS call millibars "altitude".
_NO_PRESSURE = re.compile("model|hybrid|sigma|height|altitude|depth|coordinate|sea_water", re.IGNORECASE)
_NO_PRESSURE_IN_WORDS = re.compile("model.?level|hybrid|sigma", re.IGNORECASE)


def time_axis(dataset: xr.Dataset, *, where: str) -> Axis:
    """The time at which fields are valid.

    Args:
        dataset: As opened, decoded or not.
        where: The file, for errors.

    Returns:
        The axis.

    Raises:
        CanonicalizationError: There is none, it cannot be decoded, or a time occurs twice.
    """
    name = _find(dataset, _TIME, where)
    variable = dataset.variables[name]
    argument = f"{where}: coordinate {str(name)!r}"
    if variable.ndim > 1:
        variable = variable.squeeze()  # one lead time, kept as a dimension
    if variable.attrs.get("standard_name") == "forecast_reference_time":
        raise CanonicalizationError(
            argument,
            expected="the time at which fields are valid",
            received="the initial time of forecasts",
            remedy="Add the lead time to it, and store it as a coordinate 'valid_time'.",
        )
    if variable.ndim > 1:
        raise CanonicalizationError(
            argument,
            expected="one time for each step",
            received=f"times along {_join(variable.dims)}",
            remedy="Choose one lead time or one initial time, so that one time dimension is left.",
        )
    values = _decode_times(variable, argument)
    positions = np.argsort(values, kind="stable")
    values = values[positions]
    same = np.flatnonzero(values[1:] == values[:-1])
    if same.size:
        raise CanonicalizationError(
            argument,
            expected="every time once",
            received=f"{format_time(values[same[0]])} more than once",
            remedy="Choose which of the fields of one time counts, and leave the others out.",
        )
    return Axis("time", variable.dims[0] if variable.dims else None, values, positions)


def time_bounds(dataset: xr.Dataset, *, where: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Begin and end of the interval that each time stands for.

    Args:
        dataset: As opened, decoded or not.
        where: The file, for errors.

    Returns:
        Begin [T] and end [T] in the order of storage; None where the time coordinate names no bounds.

    Raises:
        CanonicalizationError: They cannot be decoded.
    """
    time = dataset.variables[_find(dataset, _TIME, where)]
    name = str(time.attrs.get("bounds", time.encoding.get("bounds")))
    bounds = dataset.variables.get(name)
    if bounds is None or bounds.ndim > 2 or bounds.shape[-1:] != (2,):
        return None
    # Bounds are in units and calendar of their coordinate, and seldom repeat them.
    units = {key: time.attrs[key] for key in ("units", "calendar") if key in time.attrs}
    if bounds.dtype.kind in "iuf" and not {"units"} & {*units, *bounds.attrs}:
        return None  # of a time that was decoded without them
    begin, end = (
        _decode_times(
            xr.Variable(bounds.dims[:-1], bounds[..., side].values, units | bounds.attrs),
            f"{where}: bounds {name!r}",
        )
        for side in (0, 1)
    )
    return begin, end


def latitude_axis(dataset: xr.Dataset, *, where: str) -> Axis:
    """Latitude, south to north.

    Args:
        dataset: As opened.
        where: The file, for errors.

    Returns:
        The axis.

    Raises:
        CanonicalizationError: There is none, it is curvilinear or not in degrees north, or a value occurs
        twice.
    """
    dimension, values, argument = _degrees(dataset, _LATITUDE, where)
    if np.abs(values).max() > 90 + SAME_PLACE:
        raise CanonicalizationError(
            argument,
            expected="latitudes from -90 to 90",
            received=f"{values.min():g} to {values.max():g}",
            remedy="Check that latitude and longitude are not exchanged.",
        )
    positions = np.argsort(values, kind="stable")
    values = np.clip(values[positions], -90.0, 90.0)
    _refuse_repeated(values, argument)
    return Axis("latitude", dimension, values, positions)


def longitude_axis(dataset: xr.Dataset, *, where: str) -> Axis:
    """Longitude, eastward from Greenwich.

    A grid that repeats its first meridian at its end (0 and 360, or -180 and 180) has it once in the axis;
    ``twins`` keeps the other, whose fields must be equal.

    Args:
        dataset: As opened.
        where: The file, for errors.

    Returns:
        The axis.

    Raises:
        CanonicalizationError: There is none, it is curvilinear or not in degrees east, or a value occurs
        twice.
    """
    dimension, source, argument = _degrees(dataset, _LONGITUDE, where)
    if source.max() - source.min() > 360 + SAME_PLACE or source.min() < -360 or source.max() > 720:
        raise CanonicalizationError(
            argument,
            expected="longitudes that go around the globe at most once",
            received=f"{source.min():g} to {source.max():g}",
            remedy="Give longitudes in degrees east.",
        )
    values = np.round(source % 360.0, 6)  # 370.1 % 360 is 10.100000000000023
    values[values > 360 - SAME_PLACE] = 0.0  # Greenwich in float32 may be -0.000004
    positions = np.argsort(values, kind="stable")
    repeated = np.flatnonzero(np.diff(values[positions]) < SAME_PLACE)
    twins = tuple((int(positions[i]), int(positions[i + 1])) for i in repeated)
    twins = tuple(pair for pair in twins if abs(source[pair[0]] - source[pair[1]]) > 180)
    positions = positions[~np.isin(positions, [left_out for _, left_out in twins])]
    values = values[positions]
    _refuse_repeated(values, argument)
    return Axis("longitude", dimension, values, positions, twins)


def level_axis(dataset: xr.Dataset, dimension: Hashable | None, *, where: str) -> Axis | None:
    """Pressure levels along a dimension, or the one level that a scalar coordinate names.

    Args:
        dataset: As opened.
        dimension: The dimension; None to look for a scalar coordinate.
        where: The file, for errors.

    Returns:
        The axis in hPa; None if what lies there is no pressure.

    Raises:
        CanonicalizationError: A level occurs twice or is no positive number.
    """
    dims = () if dimension is None else (dimension,)
    if dimension in dataset.variables and no_pressure(dataset.variables[dimension]):
        return None  # pressures beside it are those over a ground at sea level
    for name, variable in dataset.variables.items():
        pressure = variable.attrs.get("standard_name") == "air_pressure"
        if variable.dims != dims or not (pressure or name in _LEVEL_NAMES):
            continue
        units = variable.attrs.get("units")
        factor = _LEVEL_UNITS.get(str(_LEVEL_NAMES.get(str(name)) if units is None else units))
        if factor is None or no_pressure(variable):
            continue
        argument = f"{where}: coordinate {str(name)!r}"
        with np.errstate(over="ignore"):
            values = np.round(_values(variable, argument).astype(np.float64) * factor, 6)
        if units is None and name == "level" and not pressure and not _customary(values):
            continue
        if not (np.isfinite(values).all() and values.min() > 0 and values.max() <= _HIGHEST_PRESSURE):
            raise CanonicalizationError(
                argument,
                expected=f"pressures above 0 and up to {_HIGHEST_PRESSURE:g} hPa",
                received=f"{values.min():g} to {values.max():g} hPa",
                remedy="Correct the coordinate of the file: its units attribute, or its values.",
            )
        positions = np.argsort(values, kind="stable")
        _refuse_repeated(values[positions], argument)
        return Axis("level", dimension, values[positions], positions)
    return None


def no_pressure(variable: xr.Variable) -> str | None:
    """What attributes of levels say that makes them no pressures, whatever their name and unit; None if nothing does.

    Args:
        variable: Coordinate of the levels.
    """
    said = {key: str(variable.attrs.get(key, "")) for key in ("formula_terms", "standard_name", "long_name")}
    if _NO_PRESSURE.search(said["standard_name"]):
        return said["standard_name"]
    words = _NO_PRESSURE_IN_WORDS if "units" in variable.attrs else _NO_PRESSURE
    if words.search(said["long_name"]):
        return said["long_name"]
    return f"formula_terms {said['formula_terms']!r}" if said["formula_terms"] else None


def _customary(values: np.ndarray) -> bool:
    """Whether levels that state no unit can only be pressures in hPa."""
    return bool(np.isin(values, _CUSTOMARY_LEVELS).all()) and bool(values.max() >= min(LEVELS))


def check_grid(dataset: xr.Dataset, *, where: str) -> None:
    """Refuse points: stations and unstructured meshes have latitude and longitude along one dimension.

    Args:
        dataset: As opened.
        where: The file, for errors.

    Raises:
        CanonicalizationError: They lie along the same dimension.
    """
    dims = [dataset.variables[_find(dataset, kind, where)].dims for kind in (_LATITUDE, _LONGITUDE)]
    if dims[0] == dims[1] and len(dims[0]) == 1:
        raise CanonicalizationError(
            where,
            expected="a grid of latitudes and longitudes",
            received=f"points along {dims[0][0]!r}",
            remedy="Grid the points, or regrid the unstructured mesh, to latitude and longitude first.",
        )


def check_experiment_version(dataset: xr.Dataset, *, where: str) -> None:
    """Refuse a mix of ERA5 (``expver`` 0001) and its preliminary release ERA5T (0005).

    The two differ; in old files every field even exists twice, half of it missing.

    Args:
        dataset: As opened.
        where: The file, for errors.

    Raises:
        CanonicalizationError: There is more than one version.
    """
    if "expver" not in dataset.variables and dataset.sizes.get("expver", 1) == 1:
        return
    versions = {"two versions along a dimension"}
    if "expver" in dataset.variables:
        values = dataset.variables["expver"].values
        # Fixed-length text comes as an array of single characters with the length as its last dimension.
        if values.dtype == "S1" and values.ndim:
            values = values.view(f"S{values.shape[-1]}")
        versions = {v.decode() if isinstance(v, bytes) else str(v) for v in np.ravel(values).tolist()}
    if len(versions) > 1 or dataset.sizes.get("expver", 1) > 1:
        raise CanonicalizationError(
            f"{where}: coordinate 'expver'",
            expected="one version: ERA5 (0001) or the preliminary ERA5T (0005)",
            received=_join(sorted(versions)),
            remedy="Select one version, and download the months that were preliminary again.",
        )


def same_places(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two coordinates of files are the same grid, be they stored in single precision or in double.

    Args:
        one: [n] degrees.
        other: [m] degrees.
    """
    # Half the distance of two numbers of single precision at 360 is 1.5e-5.
    return one.shape == other.shape and bool((np.abs(one - other) < 2 * SAME_PLACE).all())


def has_time(dataset: xr.Dataset) -> bool:
    """Whether anything in a dataset looks like a time coordinate.

    Args:
        dataset: As opened.
    """
    return bool(_candidates(dataset, _TIME))


def _candidates(dataset: xr.Dataset, kind: _Kind) -> list[Hashable]:
    """What may be the coordinate: the first criterion that anything meets decides."""
    variables = dataset.variables
    criteria: tuple[list[Hashable], ...] = (
        [name for name, v in variables.items() if v.attrs.get("standard_name") in kind.standard_names],
        [name for name, v in variables.items() if v.attrs.get("units") in kind.units],
        [name for name in kind.names if name in variables],
        [name for name, v in variables.items() if v.attrs.get("axis") == kind.axis],
    )
    return next((found for found in criteria if found), [])


def _find(dataset: xr.Dataset, kind: _Kind, where: str) -> Hashable:
    """Name of the coordinate."""
    variables = dataset.variables
    candidates: list[Any] = _candidates(dataset, kind)
    if not candidates:
        raise CanonicalizationError(
            where,
            expected=f"a {kind.name} coordinate: standard_name {kind.standard_names[0]!r}, "
            f"or one of the names {_join(kind.names)}",
            received=f"variables {_join(variables)}; dimensions {_join(dataset.sizes)}",
            remedy=f"Add a {kind.name} coordinate with CF attributes to the file.",
        )
    # Of several, the plainest name: beside valid_time, cfgrib calls the initial time of a forecast "time" and
    # a dimension. Else the one that is a dimension's own coordinate.
    for preferred in (
        [name for name in kind.names[:1] if name in candidates],
        [name for name in candidates if variables[name].dims == (name,)],
    ):
        candidates = preferred if len(candidates) > 1 and preferred else candidates
    if len(candidates) > 1:
        raise CanonicalizationError(
            where,
            expected=f"one {kind.name} coordinate",
            received=_join(candidates),
            remedy="Leave only the coordinate of the fields in the file.",
        )
    return candidates[0]


def _degrees(dataset: xr.Dataset, kind: _Kind, where: str) -> tuple[Hashable | None, np.ndarray, str]:
    """Dimension, values [n] and description of a horizontal coordinate, after the checks common to both."""
    name = _find(dataset, kind, where)
    variable = dataset.variables[name]
    argument = f"{where}: coordinate {str(name)!r}"
    if variable.ndim > 1:
        raise CanonicalizationError(
            argument,
            expected=f"a rectilinear grid: {kind.name} along one dimension",
            received=f"a curvilinear grid: {kind.name} along {_join(variable.dims)}",
            remedy="Regrid to latitude and longitude first, for example with cdo or xarray-regrid.",
        )
    units = variable.attrs.get("units")
    if units is not None and units not in (*kind.units, *_DEGREES):
        raise CanonicalizationError(
            argument,
            expected=f"units {kind.units[0]!r}",
            received=f"units {units!r}",
            remedy="Fields on projected coordinates must be regridded; radians converted to degrees.",
        )
    _check_true(dataset, name, kind, argument)
    values = _values(variable, argument).astype(np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise CanonicalizationError(
            argument,
            expected="finite degrees",
            received="missing values" if values.size else "no values",
            remedy="Correct the coordinate of the file.",
        )
    with np.errstate(over="ignore"):  # what overflows is no degree either way
        return (variable.dims[0] if variable.dims else None), np.round(values, 6), argument


def _check_true(dataset: xr.Dataset, name: Hashable, kind: _Kind, argument: str) -> None:
    """Refuse coordinates of another grid, such as one with a rotated pole, and what only may be degrees."""
    attributes = dataset.variables[name].attrs
    stated, units = attributes.get("standard_name"), attributes.get("units")
    received = None
    if stated is not None and str(stated).lower() not in {
        n.lower() for n in (*kind.standard_names, *kind.names)
    }:
        received = f"standard_name {stated!r}"
    elif stated is None and units not in kind.units:
        # Found by its name or axis alone.
        others = sorted(_grid_mappings(dataset) - {*_TRUE_GRIDS})
        if others:
            received = f"{'no units' if units is None else f'units {units!r}'} on a grid of {_join(others)}"
        elif units is None and name not in kind.names:
            received = f"axis {kind.axis!r} without standard_name and units"
    if received is not None:
        raise CanonicalizationError(
            argument,
            expected=f"standard_name {kind.standard_names[0]!r} or units {kind.units[0]!r}",
            received=received,
            remedy="Regrid fields of a rotated or projected grid to latitude and longitude; of others, correct the "
            "attributes of the coordinate.",
        )


def _grid_mappings(dataset: xr.Dataset) -> set[str]:
    """Grid mappings that variables of a dataset refer to, by CF's names."""
    # "crs", or "crs: x y other: lat lon".
    referred = {
        name.rstrip(":")
        for variable in dataset.variables.values()
        for key in (variable.attrs.get("grid_mapping"), variable.encoding.get("grid_mapping"))
        for name in str(key or "").split()
    }
    return {
        str(dataset.variables[name].attrs.get("grid_mapping_name", "unknown"))
        for name in referred & set(map(str, dataset.variables))
    }


def _values(variable: xr.Variable, argument: str) -> np.ndarray:
    """[n] the values of a coordinate; a size that none has is refused before memory is asked for."""
    if variable.size > MAX_COORDINATES:
        raise CanonicalizationError(
            argument,
            expected=f"at most {MAX_COORDINATES:,} values",
            received=f"{variable.size:,}",
            remedy="The metadata of the file are damaged: download or write it again.",
        )
    values = np.atleast_1d(variable.values)
    if values.dtype.kind not in "iuf":
        return values
    scale, offset = scale_and_offset(variable.attrs, argument)
    return values if (scale, offset) == (1.0, 0.0) else values.astype(np.float64) * scale + offset


def _decode_times(variable: xr.Variable, argument: str) -> np.ndarray:
    """[T] datetime64[s] or cftime dates, to the nearest second."""
    values = _values(variable, argument)
    kind = values.dtype.kind
    missing = (
        np.isnat(values) if kind in "mM" else np.isnan(values) if kind == "f" else np.zeros(1, dtype=bool)
    )
    if values.size == 0 or missing.any() or (values == variable.attrs.get("_FillValue", None)).any():
        raise CanonicalizationError(
            argument,
            expected="a time for every step",
            received="missing times" if values.size else "no times",
            remedy="Correct the coordinate of the file.",
        )
    if kind == "M" or isinstance(values[0], cftime.datetime):
        return as_time_axis(_to_second(values))
    units, calendar = variable.attrs.get("units"), variable.attrs.get("calendar", "standard")
    if kind not in "iuf" or " since " not in str(units):
        raise CanonicalizationError(
            argument,
            expected="numbers with units such as 'hours since 1900-01-01', or dates",
            received=f"{values.dtype} values with {'no units' if units is None else f'units {units!r}'}",
            remedy="Add the units attribute, and calendar if it is not the standard one.",
        )
    step, _, reference = str(units).strip().partition(" since ")
    zone = re.search(r"\d\s*([A-Za-z]{2,})$", reference.strip())
    if zone and zone[1] not in ("UTC", "GMT"):
        raise CanonicalizationError(
            argument,
            expected="a reference time in UTC, or with an offset such as -05:00",
            received=f"units {units!r}",
            remedy=f"Write the offset from UTC instead of {zone[1]}.",
        )
    # The year 1 of COARDS files, in the four digits that leave no doubt about it.
    reference = re.sub(r"^\d{1,3}(?=-)", lambda year: year[0].zfill(4), reference.strip())
    # An hour alone ("2000-01-01 06"): cftime leaves it out in other calendars.
    reference = re.sub(r"^(\d+-\d+-\d+[T ]\s*\d{1,2})(?![\d:])", r"\1:00", reference)
    seconds = next((number for names, number in _TIME_STEPS.items() if step in names), None)
    undecodable = CanonicalizationError(
        argument,
        expected="a time that can be decoded",
        received=f"units {units!r}, calendar {calendar!r}, values {values.min():g} to {values.max():g}",
        remedy="Correct the units or calendar attribute, or the values.",
    )
    if seconds is not None:
        # Whole seconds: fractions of a day are never exact, and xarray warns of them.
        whole = np.round(values.astype(np.float64) * seconds)
        if not (np.abs(whole) < MAX_SECONDS).all():
            raise undecodable
        values, units = whole.astype(np.int64), f"seconds since {reference}"
    try:
        raw = xr.Dataset({"time": ("time", values, {"units": units, "calendar": calendar})})
        # Counted in seconds, datetime64 reaches billions of years; in nanoseconds it ends in 2262. The standard
        # calendar is Julian before 1582, where xarray takes cftime dates and warns of it.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unable to decode time axis", xr.SerializationWarning)
            decoded = xr.decode_cf(raw, decode_times=xr.coders.CFDatetimeCoder(time_unit="s"))["time"].values
    except (ValueError, OverflowError, TypeError) as error:
        raise undecodable from error
    if decoded.dtype.kind == "M" and np.isnat(decoded).any():
        raise undecodable
    return as_time_axis(_to_second(decoded))


def _to_second(values: np.ndarray) -> np.ndarray:
    """Nearest second, for times that were decoded elsewhere: fractions of a day end in 05:59:59.999999."""
    if values.dtype.kind == "M":
        if values.dtype == np.dtype("datetime64[s]"):
            return values
        return (values.astype("datetime64[ms]") + np.timedelta64(500, "ms")).astype("datetime64[s]")
    half = datetime.timedelta(milliseconds=500)
    return np.array([(time + half).replace(microsecond=0) for time in values], dtype=object)


def _refuse_repeated(values: np.ndarray, argument: str) -> None:
    repeated = np.flatnonzero(np.diff(values) < SAME_PLACE)
    if repeated.size:
        raise CanonicalizationError(
            argument,
            expected="every value once",
            received=f"{values[repeated[0]]:g} twice",
            remedy="Remove the repeated rows or columns from the file.",
        )


def _join(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"
