"""Mean and standard deviation of the training times, and the exact way there and back.

A model sees x' = (x − μ) / σ, and x = σ x' + μ brings physical units back: μ and σ are one number per
variable, computed once from training times only and stored with every checkpoint. They are never recomputed
per batch, which would take away the absolute value that a text speaks of.

With cells *i* at latitude φᵢ, weights wᵢ = cos φᵢ, and missing values left out:
μ = Σ wᵢ xᵢ / Σ wᵢ and σ² = Σ wᵢ (xᵢ − μ)² / Σ wᵢ, over all cells and training times.

Reference: the merging of means and sums of squares of parts is that of Chan, Golub and LeVeque (1983),
"Algorithms for computing the sample variance", eq. 2.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from climafuse.data.lazy import reading
from climafuse.data.times import TimeLike, as_time_axis, find_time, format_time
from climafuse.errors import (
    CanonicalizationError,
    DataError,
    MissingValuesError,
    OutOfRangeError,
    UsageError,
    VariableNotFoundError,
)

# A dataset with ``mean`` and ``std`` along ``variable``, and where they are from in its attributes.
Statistics: TypeAlias = xr.Dataset

BLOCK_BYTES = 32 * 2**20  # of a float32 field read at once


def compute_statistics(
    dataset: xr.Dataset, times: Sequence[TimeLike] | Sequence[int] | np.ndarray
) -> Statistics:
    """Area-weighted mean and standard deviation of each variable over the training times.

    Args:
        dataset: Canonical; variables with dimensions time, latitude, longitude. Read in blocks, not as a
        whole.
        times: The training times, each of them in the dataset; or their positions on its time axis, as
        integers.

    Returns:
        ``mean`` and ``std`` [V] float64 in SI units, along ``variable``; ``units`` [V]. Attributes say how
        many times there were, the first and last, the SHA-256 of all (of their ISO 8601 texts, one a line),
        and the source.

    Raises:
        UsageError: No times.
        OutOfRangeError: A time is not in the dataset.
        CanonicalizationError: A variable has other dimensions.
        MissingValuesError: A variable has no value at any of the times.
        DataError: A variable has the same value everywhere: it cannot be normalized and says nothing. Or it has
            infinite values.
    """
    axis = as_time_axis(dataset["time"].values)
    steps = check_steps(axis, times)
    check_dimensions(dataset)
    weights = area_weights(dataset["latitude"].values)
    parts = np.empty((len(steps), len(dataset.data_vars), 3))
    for index, field in enumerate(dataset.data_vars.values()):
        field = field.transpose("time", "latitude", "longitude")
        # Several steps at once: where a file keeps many in a chunk, reading one costs as much as reading all.
        num = max(1, BLOCK_BYTES // (4 * field.sizes["latitude"] * field.sizes["longitude"]))
        for start in range(0, len(steps), num):
            for part, values in enumerate(field.isel(time=steps[start : start + num]).values, start):
                parts[part, index] = field_moments(values, weights)
    return merge_statistics(dataset, steps, parts)


def check_dimensions(dataset: xr.Dataset) -> None:
    """Check that statistics of a dataset can be computed.

    Args:
        dataset: Canonical.

    Raises:
        CanonicalizationError: A variable has other dimensions than time, latitude, longitude.
    """
    for name, field in dataset.data_vars.items():
        if set(field.dims) != {"time", "latitude", "longitude"}:
            raise CanonicalizationError(
                f"variable {str(name)!r}",
                expected="dimensions time, latitude, longitude",
                received=", ".join(map(str, field.dims)),
                remedy="Choose levels with select_variables, as in 't850'.",
            )


def check_steps(axis: np.ndarray, times: Sequence[TimeLike] | Sequence[int] | np.ndarray) -> np.ndarray:
    """Training times as positions.

    Args:
        axis: [T] all times.
        times: Of the axis, or positions on it.

    Returns:
        [N] positions, ascending, each once.

    Raises:
        UsageError: No times.
        OutOfRangeError: A time is not on the axis.
    """
    given = np.asarray(times)
    if given.size == 0:
        raise UsageError(
            "times",
            expected="at least one training time",
            received="none",
            remedy="Give the times of the training split.",
        )
    if given.dtype.kind not in "iu":
        return np.unique(np.array([find_time(axis, time) for time in times], dtype=np.int64))
    outside = given[(given < 0) | (given >= len(axis))]
    if outside.size:
        raise OutOfRangeError(
            "times",
            expected=f"positions from 0 to {len(axis) - 1}",
            received=int(outside[0]),
            remedy="Give positions on the time axis of this dataset.",
        )
    return np.unique(given)


def area_weights(latitude: np.ndarray) -> np.ndarray:
    """Weights of rows: cos φ, [H] float64."""
    return np.clip(np.cos(np.deg2rad(latitude)), 0.0, None)


def field_moments(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Moments of one variable at one time.

    Args:
        values: [H, W] float32, NaN where missing.
        weights: [H] of rows (`area_weights`).

    Returns:
        Σ w, Σ w x / Σ w and Σ w (x − mean)²; zeros where there is no value. A function of this one field alone,
        so that the statistics of a store are the same in whatever blocks it was read.
    """
    values = np.ascontiguousarray(values)  # the order of sums follows the memory
    valid = ~np.isnan(values)
    complete = bool(valid.all())
    counts = np.full(len(values), values.shape[1]) if complete else valid.sum(axis=1)
    total = float((weights * counts).sum())
    if total == 0.0:
        return 0.0, 0.0, 0.0
    known = values if complete else np.where(valid, values, np.float32(0))
    with np.errstate(invalid="ignore"):  # infinities: refused when all are merged, where their time is known
        mean = float((weights * known.sum(axis=1, dtype=np.float64)).sum()) / total
        deviation = values.astype(np.float64)
        deviation -= mean
        if not complete:
            deviation[~valid] = 0.0
        return total, mean, float((weights * np.einsum("hw,hw->h", deviation, deviation)).sum())


def merge_statistics(dataset: xr.Dataset, steps: np.ndarray, parts: np.ndarray) -> Statistics:
    """Merge the moments of all training times.

    Args:
        dataset: Canonical; its names, units, times and source are taken, no values.
        steps: [N] the training times, as positions.
        parts: [N, V, 3] float64, `field_moments` of each variable at each of them.

    Returns:
        As `compute_statistics`.

    Raises:
        MissingValuesError: A variable has no value at any of the times.
        DataError: A variable has the same value everywhere: it cannot be normalized and says nothing. Or it has
            infinite values.
    """
    names = [str(name) for name in dataset.data_vars]
    axis = as_time_axis(dataset["time"].values)
    for step, variable in np.argwhere(~np.isfinite(parts).all(axis=2)):
        raise DataError(
            f"variable {names[variable]!r} at {format_time(axis[steps[step]])}",
            expected="finite values, and NaN where there are none",
            received="infinite values",
            remedy="If they stand for missing values, write NaN in their places.",
        )
    total, mean, squares = np.zeros((3, len(names)))
    for part_total, part_mean, part_squares in parts.transpose(0, 2, 1):
        merged = np.maximum(total + part_total, np.finfo(float).tiny)  # nothing but missing values so far: 0
        difference = part_mean - mean
        squares = squares + part_squares + difference**2 * total * part_total / merged
        mean = mean + difference * part_total / merged
        total = total + part_total
    texts = [format_time(axis[step]) for step in steps]
    return xr.Dataset(
        {
            "mean": ("variable", mean),
            "std": (
                "variable",
                np.array(list(map(_checked_deviation, names, total, mean, squares))),
            ),
            "units": ("variable", [str(dataset[name].attrs.get("units", "")) for name in names]),
        },
        coords={"variable": names},
        attrs={
            "description": "area-weighted mean and standard deviation over the training times",
            "source": _source(dataset),
            "num_times": len(texts),
            "first_time": texts[0],
            "last_time": texts[-1],
            "times_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
            # Fields of anomalies that were re-based on these times (`rebase`): who uses the statistics must, too.
            **{key: dataset.attrs[key] for key in ("anomalies",) if key in dataset.attrs},
        },
    )


def normalize(values: np.ndarray, statistics: Statistics, variables: Sequence[str]) -> np.ndarray:
    """Physical values -> values of mean 0 and standard deviation 1 over the training times.

    Args:
        values: [..., V, H, W] SI units; NaN stays NaN.
        statistics: From ``compute_statistics``.
        variables: Length V, canonical names in the order of the axis.

    Returns:
        [..., V, H, W] float32.

    Raises:
        VariableNotFoundError: The statistics lack a variable.
        UsageError: The number of variables does not fit the values.
    """
    mean, std = _columns(values, statistics, variables)
    return ((values - mean) / std).astype(np.float32)  # in double precision: msl in Pa would lose a digit


def denormalize(values: np.ndarray, statistics: Statistics, variables: Sequence[str]) -> np.ndarray:
    """Normalized values -> physical values: the inverse of ``normalize`` to the last digit of float32.

    Args:
        values: [..., V, H, W] normalized; NaN stays NaN.
        statistics: Those that normalized them.
        variables: Length V, canonical names in the order of the axis.

    Returns:
        [..., V, H, W] float32, SI units.

    Raises:
        VariableNotFoundError: The statistics lack a variable.
        UsageError: The number of variables does not fit the values.
    """
    mean, std = _columns(values, statistics, variables)
    return (values * std + mean).astype(np.float32)


def statistics_to_dict(statistics: Statistics) -> dict[str, Any]:
    """Statistics as plain numbers and texts, for JSON; numbers survive it exactly.

    Args:
        statistics: From ``compute_statistics``.

    Returns:
        ``{"variables": {name: {"mean", "std", "units"}}, "provenance": {...}}``.
    """
    variables = {
        str(name): {
            "mean": float(statistics["mean"].values[i]),
            "std": float(statistics["std"].values[i]),
            "units": str(statistics["units"].values[i]),
        }
        for i, name in enumerate(statistics["variable"].values)
    }
    provenance = {key: v.item() if isinstance(v, np.generic) else v for key, v in statistics.attrs.items()}
    return {"variables": variables, "provenance": provenance}


def statistics_from_dict(content: Mapping[str, Any]) -> Statistics:
    """The inverse of ``statistics_to_dict``.

    Args:
        content: As read from JSON.

    Returns:
        The statistics.

    Raises:
        DataError: A number is missing, not finite, or a standard deviation is not positive.
    """
    try:
        variables = content["variables"]
        mean = np.array([float(entry["mean"]) for entry in variables.values()])
        std = np.array([float(entry["std"]) for entry in variables.values()])
        units = [str(entry["units"]) for entry in variables.values()]
        names, provenance = [str(name) for name in variables], dict(content["provenance"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _malformed(f"{type(error).__name__}: {error}") from error
    if not (len(names) and np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise _malformed(f"means {mean.tolist()}, standard deviations {std.tolist()}")
    return xr.Dataset(
        {"mean": ("variable", mean), "std": ("variable", std), "units": ("variable", units)},
        coords={"variable": names},
        attrs=provenance,
    )


def save_statistics(statistics: Statistics, path: str | Path) -> None:
    """Write statistics to a NetCDF file.

    Args:
        statistics: From ``compute_statistics``.
        path: The file.
    """
    statistics.to_netcdf(path, engine="netcdf4")


def load_statistics(path: str | Path) -> Statistics:
    """The inverse of ``save_statistics``.

    Args:
        path: The file.

    Returns:
        The statistics, in memory.

    Raises:
        ClimateFileError: The file cannot be read.
        DataError: It holds no statistics.
    """
    with reading(str(path)):
        stored = xr.load_dataset(path, engine="netcdf4")
    if not {"mean", "std", "units", "variable"} <= set(stored.variables):
        raise _malformed(f"a file that holds {', '.join(map(str, stored.variables))}")
    return statistics_from_dict(statistics_to_dict(stored))


def moments(statistics: Statistics) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Statistics as plain arrays, for arithmetic.

    Args:
        statistics: From ``compute_statistics``.

    Returns:
        Names of the variables, length V; mean [V] and standard deviation [V], float64.
    """
    names = tuple(str(name) for name in statistics["variable"].values)
    return names, statistics["mean"].values, statistics["std"].values


def _malformed(received: str) -> DataError:
    return DataError(
        "statistics",
        expected="finite means and positive standard deviations of the variables, and their provenance",
        received=received,
        remedy="Compute them again with compute_statistics; a checkpoint with such statistics is altered.",
    )


def _checked_deviation(name: str, total: float, mean: float, squares: float) -> float:
    if total == 0.0:
        raise MissingValuesError(
            f"variable {name!r}",
            expected="values at the training times",
            received="nothing but missing values",
            remedy="Leave the variable out, or check the fill value and the times.",
        )
    std = float(np.sqrt(squares / total))
    # Below the resolution of float32 a difference is rounding, not weather.
    if not std > np.finfo(np.float32).eps * abs(mean):
        raise DataError(
            f"variable {name!r}",
            expected="values that differ at the training times",
            received=f"{mean:g} everywhere",
            remedy="Leave the variable out: it cannot be normalized and holds no information.",
        )
    return std


def _columns(
    values: np.ndarray, statistics: Statistics, variables: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in the order of the variables, [V, 1, 1]."""
    if values.ndim < 3 or values.shape[-3] != len(variables):
        raise UsageError(
            "values",
            expected=f"shape [..., {len(variables)}, height, width], for {', '.join(variables)}",
            received=f"shape {values.shape}",
            remedy="Name the variables in the order of the axis before height and width.",
        )
    known, mean, std = moments(statistics)
    absent = [name for name in variables if name not in known]
    if absent:
        raise VariableNotFoundError(
            f"variable {absent[0]!r}",
            expected=f"one of {', '.join(known)}",
            received="a variable without statistics",
            remedy="Normalize only variables that were there in training.",
        )
    order = [known.index(name) for name in variables]
    return mean[order][:, None, None], std[order][:, None, None]


def _source(dataset: xr.Dataset) -> str:
    """Title and file names, without directories: statistics travel with checkpoints."""
    files = str(dataset.attrs.get("climate_source", "")).split(", ")
    names = ", ".join(Path(file).name for file in files if file)
    return "; ".join(text for text in (str(dataset.attrs.get("title", "")), names) if text) or "unknown"
