"""Fields of anomalies, measured against the training times.

Anomalies as files give them refer to years of their maker's choice, test years often among them: a model that is told
so has been told of the test. Re-based, they are departures from the mean of the training times, each cell by itself,
and each calendar month by itself where asked for (which is exact: the old reference cancels out). Which fields are
anomalies is in the table of variables (``Variable.anomaly``).
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from xarray.core import indexing

from climafuse.data.lazy import LazyArray, reading
from climafuse.data.normalization import check_dimensions, check_steps
from climafuse.data.times import as_time_axis, find_time, format_time
from climafuse.data.variables import VARIABLES
from climafuse.errors import OutOfRangeError, UsageError

Season = Literal["month", "all"]
BLOCK_BYTES = 64 * 2**20  # read at once


def rebase(dataset: xr.Dataset, steps: np.ndarray, season: Season = "month") -> xr.Dataset:
    """Measure the anomalies of a dataset against the mean of chosen times.

    Args:
        dataset: Canonical, with dimensions time, latitude, longitude.
        steps: [N] positions of these times: the training times.
        season: "month" takes the mean of each calendar month by itself, "all" one of all times.

    Returns:
        The dataset; its fields of anomalies are read and re-based on use, the others stay as they are. The attribute
        ``anomalies`` tells the season, and ``baseline`` of each re-based field the times. A cell that has no value
        at these times has none at any.

    Raises:
        UsageError: No such season, no field of anomalies, or a calendar month that is not among the times.
        CanonicalizationError: A field has other dimensions.
    """
    if season not in get_args(Season):
        raise UsageError(
            "anomalies",
            expected=f"one of {', '.join(get_args(Season))}",
            received=repr(season),
            remedy="Choose one, or none to leave the fields as they are.",
        )
    names = [
        str(name) for name in dataset.data_vars if str(name) in VARIABLES and VARIABLES[str(name)].anomaly
    ]
    if not names:
        raise UsageError(
            "anomalies",
            expected=f"a field of anomalies, such as {next(v.name for v in VARIABLES.values() if v.anomaly)}",
            received=", ".join(map(str, dataset.data_vars)) or "no fields",
            remedy="Leave the option out: other fields are not re-based.",
        )
    check_dimensions(dataset)
    times = as_time_axis(dataset["time"].values)
    steps = check_steps(times, steps)
    group = _months(times) if season == "month" else np.zeros(len(times), dtype=np.int64)  # [T]
    unknown = np.setdiff1d(group, group[steps])
    if unknown.size:
        raise UsageError(
            "anomalies",
            expected="training times in every calendar month",
            received=f"none in month {unknown[0] + 1}",
            remedy="Train on whole years, or take the mean of all times: anomalies 'all'.",
        )
    each = ", each month by itself" if season == "month" else ""
    baseline = f"{format_time(times[steps[0]])} to {format_time(times[steps[-1]])}, {len(steps)} times{each}"
    changed = {}
    for name in names:
        field = dataset[name].transpose("time", "latitude", "longitude")
        with reading(str(dataset.attrs.get("climate_source", "dataset"))):
            lazy = RebasedField(field.variable, _means(field, steps, group), group)
        variable = xr.Variable(
            field.dims, indexing.LazilyIndexedArray(lazy), field.attrs | {"baseline": baseline}
        )
        changed[name] = xr.DataArray(variable, coords=field.coords)
    rebased = dataset.assign(changed).assign_attrs(anomalies=season)
    rebased.set_close(dataset.close)
    return rebased


def rebase_as(dataset: xr.Dataset, statistics: dict[str, Any]) -> xr.Dataset:
    """Re-base fields as those were that a model was trained on.

    Args:
        dataset: Canonical; it must hold the training times, or what anomalies are measured against is not known.
        statistics: Of the training times, as `statistics_to_dict` writes them.

    Returns:
        The dataset, as it is where the model was trained on fields as they were.

    Raises:
        OutOfRangeError: The dataset lacks a training time.
    """
    made = statistics.get("provenance", {})
    if not made.get("anomalies"):
        return dataset
    times = as_time_axis(dataset["time"].values)
    try:
        first, last = (find_time(times, made.get(name)) for name in ("first_time", "last_time"))
        steps = np.arange(first, last + 1)
    except OutOfRangeError:
        steps = np.arange(0)
    digest = hashlib.sha256("\n".join(format_time(times[step]) for step in steps).encode()).hexdigest()
    if digest != made.get("times_sha256"):
        raise OutOfRangeError(
            "climate",
            expected=f"fields that hold the {made.get('num_times')} training times, {made.get('first_time')} to "
            f"{made.get('last_time')}: the model reads anomalies against them",
            received=f"{len(times)} times, {format_time(times[0])} to {format_time(times[-1])}",
            remedy="Give the training times and the time asked about together, as several files or a pattern.",
        )
    return rebase(dataset, steps, made["anomalies"])


class RebasedField(LazyArray):
    """A field less the mean of its group of times, on use.

    Args:
        field: [T, H, W] in SI units, lazy.
        means: [groups, H, W] float64.
        group: [T] of each time.
    """

    def __init__(self, field: xr.Variable, means: np.ndarray, group: np.ndarray) -> None:
        self.field, self.group = field, group
        self.means = xr.Variable(field.dims, means)
        self.shape = field.shape
        self.dtype = np.dtype(np.float32)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        time, *space = key
        values = self.field.isel(dict(zip(self.field.dims, key, strict=True))).values
        means = self.means.isel(dict(zip(self.field.dims, (self.group[time], *space), strict=True))).values
        return np.asarray(values - means, dtype=np.float32)  # rounded once


def _months(times: np.ndarray) -> np.ndarray:
    """[T] 0 for January."""
    if times.dtype == object:
        return np.array([time.month - 1 for time in times], dtype=np.int64)
    return times.astype("datetime64[M]").astype(np.int64) % 12


def _means(field: xr.DataArray, steps: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Mean over the steps of each group, [groups, H, W] float64; NaN where a cell has no value."""
    _, height, width = field.shape
    total = np.zeros((int(group.max()) + 1, height, width))
    count = np.zeros(total.shape, dtype=np.int64)
    num = max(1, BLOCK_BYTES // (4 * height * width))
    for start in range(0, len(steps), num):
        block = steps[start : start + num]
        for step, values in zip(block, field.isel(time=block).values, strict=True):
            valid = ~np.isnan(values)
            total[group[step]] += np.where(valid, values, 0.0)
            count[group[step]] += valid
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
