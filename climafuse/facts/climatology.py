"""The normal state of each cell, that anomalies are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from climafuse.data.window import Window
from climafuse.errors import CanonicalizationError, OutOfRangeError

if TYPE_CHECKING:
    import xarray as xr

_EDGE = 1e-4  # degrees; file coordinates are often float32


@dataclass(frozen=True, eq=False)
class Climatology:
    """Mean fields by calendar month, or one for all months.

    Args:
        fields: Variable → [12 or 1, H, W] float64, SI units, NaN where unknown; January first.
        latitude: [H] degrees north, ascending.
        longitude: [W] degrees east, ascending in [0, 360).
    """

    fields: Mapping[str, np.ndarray]
    latitude: np.ndarray
    longitude: np.ndarray

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> Climatology:
        """From mean fields.

        Such as ``canonical.sel(time=training_times).groupby("time.month").mean("time")``. Take them from
        training times only; a climatology of all times tells the model about the test.

        Args:
            dataset: Dimensions latitude and longitude as in a canonical dataset, and for fields by month
                "month", 1 to 12.

        Raises:
            CanonicalizationError: A variable has another dimension, or not all twelve months are there.
        """
        months = "month" in dataset.dims
        if months and sorted(dataset["month"].values.tolist()) != list(range(1, 13)):
            raise _malformed("month", "the months 1 to 12", dataset["month"].values.tolist())
        fields = {}
        for name, array in dataset.data_vars.items():
            if not {"latitude", "longitude"} <= set(array.dims) <= {"month", "latitude", "longitude"}:
                raise _malformed(str(name), "dimensions latitude, longitude, and month or none", array.dims)
            if "month" in array.dims:
                values = array.sortby("month").transpose("month", "latitude", "longitude").values
            else:
                values = array.transpose("latitude", "longitude").values[None]
            fields[str(name)] = values.astype(np.float64)  # [12 or 1, H, W]
        return cls(
            fields,
            dataset["latitude"].values.astype(np.float64),
            dataset["longitude"].values.astype(np.float64),
        )

    def on(self, window: Window) -> dict[str, np.ndarray]:
        """The normal fields on the cells of a window, for the month of its valid time.

        Args:
            window: On the grid of the climatology.

        Returns:
            Variable → [H, W].

        Raises:
            OutOfRangeError: A cell of the window is none of the climatology.
        """
        rows = _locate(self.latitude, window.latitude, "latitude")
        columns = _locate(self.longitude, window.longitude, "longitude")
        month = _month(window.time[-1])
        cells = np.ix_(rows, columns)
        return {
            name: values[month if len(values) == 12 else 0][cells] for name, values in self.fields.items()
        }


def _month(time: Any) -> int:
    """0 for January."""
    if isinstance(time, np.datetime64):
        return int(time.astype("datetime64[M]").astype(np.int64)) % 12
    return int(time.month) - 1


def _locate(known: np.ndarray, wanted: np.ndarray, name: str) -> np.ndarray:
    distance = np.abs(known[None, :] - wanted[:, None])  # [wanted, known]
    if name == "longitude":
        distance = np.minimum(distance, 360.0 - distance)
    nearest = distance.argmin(axis=1)
    if (distance[np.arange(len(wanted)), nearest] > _EDGE).any():
        raise OutOfRangeError(
            f"climatology {name}",
            expected=f"the cells of the window, {wanted.min():g} to {wanted.max():g}",
            received=f"a grid of {len(known)} from {known.min():g} to {known.max():g}",
            remedy="Compute the climatology from the same grid as the fields.",
        )
    return nearest


def _malformed(argument: str, expected: str, received: object) -> CanonicalizationError:
    return CanonicalizationError(
        argument,
        expected=expected,
        received=received,
        remedy='Compute the climatology with canonical.groupby("time.month").mean("time"), or .mean("time").',
    )
