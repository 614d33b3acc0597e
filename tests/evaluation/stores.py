"""A store of constructed fields, for the tests of evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from climafuse.data.splits import Splits
from climafuse.data.store import TrainingStore

UNITS = {"t2m": "K", "u10": "m s-1", "v10": "m s-1", "msl": "Pa", "tp": "m"}
LATITUDE = np.arange(0.0, 10.0)
LONGITUDE = np.arange(20.0, 32.0)
# Steps 6 and 9 lie in the gaps.
SPLITS = Splits(np.arange(6), np.array([7, 8]), np.array([10, 11]), np.array([6, 9]))


def make_store(
    fields: Mapping[str, np.ndarray],
    *,
    splits: Splits = SPLITS,
    latitude: Sequence[float] = LATITUDE,
    longitude: Sequence[float] = LONGITUDE,
) -> TrainingStore:
    """Each field [T, H, W] or [T] (even over the grid), in SI units; one time a day."""
    num_times = len(next(iter(fields.values())))
    shape = (num_times, len(latitude), len(longitude))

    def spread(field: np.ndarray) -> np.ndarray:
        field = np.asarray(field, np.float32)
        return np.broadcast_to(field.reshape(-1, *([1, 1] if field.ndim == 1 else field.shape[1:])), shape)

    dataset = xr.Dataset(
        {
            name: (("time", "latitude", "longitude"), spread(field).copy(), {"units": UNITS[name]})
            for name, field in fields.items()
        },
        coords={
            "time": np.datetime64("2026-03-01", "ns") + np.arange(num_times) * np.timedelta64(1, "D"),
            "latitude": np.asarray(latitude, float),
            "longitude": np.asarray(longitude, float),
        },
    )
    return TrainingStore.from_dataset(dataset, splits=splits)


def random_store(seed: int = 0, *, num_times: int = 12, splits: Splits = SPLITS) -> TrainingStore:
    """Weather whose values differ so much from time to time that a guess is seldom right."""
    rng = np.random.default_rng(seed)
    shape = (num_times, len(LATITUDE), len(LONGITUDE))

    def weather(mean: float, between: float, within: float) -> np.ndarray:
        offset = rng.normal(mean, between, (num_times, 1, 1))
        slope = rng.normal(0, within, (num_times, 1, 1)) * (np.arange(shape[1])[None, :, None] - 4.5)
        return offset + slope + rng.normal(0, within, shape)

    return make_store(
        {
            "t2m": weather(283, 20, 2),
            "u10": weather(0, 8, 1),
            "v10": weather(0, 8, 1),
            "msl": weather(101300, 2000, 200),
            "tp": np.abs(weather(0, 5e-3, 5e-4)),
        },
        splits=splits,
    )


def changed(store: TrainingStore, steps: Sequence[int]) -> TrainingStore:
    """The same store with other fields at some steps."""
    fields = np.array(store.fields)
    fields[list(steps)] = fields[list(steps)] * 1.1 + 3
    return dataclasses.replace(store, fields=fields)
