"""How much faster training samples come from the training store than from the original file.

A sample is a window of two steps, 16 by 16 degrees and six variables at a random time and place, and both sides end
with the same call, `collate_windows`, which makes normalized tensors of a batch. The reference is xarray at its
fastest: the file stays open, positions are integers known beforehand, and no box crosses the edge of the file; wind
speed is computed from the components, as the file holds none. Both sides give the same tensors: that is checked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from climafuse.data.batch import collate_windows, sample_boxes
from climafuse.data.samples import sample_path
from climafuse.data.store import TrainingStore, prepare
from climafuse.data.window import Box, Window
from scripts.benchmarks.inputs import DEGREES, HISTORY, VARIABLES
from scripts.benchmarks.measure import Row, Size, compare, quartiles

AIM = 20.0
BATCH = 16
SHARE = 10  # plain xarray reads one in so many windows
MEANING = "samples/s from the training store ÷ samples/s of plain xarray indexing of the NetCDF file"


@dataclass(frozen=True)
class Place:
    """A window: its last step and box for the store, its ranges of indices for the file."""

    step: int
    box: Box
    ranges: dict[str, slice]


def rows(size: Size) -> Iterator[Row]:
    """Measure a store in memory and one on disk."""
    with tempfile.TemporaryDirectory() as folder, xr.open_dataset(sample_path("era5")) as file:
        prepare(sample_path("era5"), Path(folder) / "store", variables=VARIABLES)
        for kind, memory_bytes in (("in memory", 2**30), ("on disk", 0)):
            store = TrainingStore.open(Path(folder) / "store", memory_bytes=memory_bytes)
            yield _row(size, kind, store, file)


def _row(size: Size, kind: str, store: TrainingStore, file: xr.Dataset) -> Row:
    places = _places(store, file, size.windows)
    few = places[:: SHARE if len(places) > SHARE * BATCH else 1]
    _check(from_store(store, places[:BATCH]), from_file(file, store, places[:BATCH]))
    found = compare(
        lambda: [from_store(store, group) for group in _batches(places)],
        lambda: [from_file(file, store, group) for group in _batches(few)],
        repeats=size.repeats,
        warmup=size.warmup,
    )
    speeds = tuple(ratio * len(places) / len(few) for ratio in found.inverse())
    ratio = float(np.median(speeds))
    return Row(
        section="loader",
        case=f"store {kind}, batches of {BATCH}",
        ratio=ratio,
        spread=quartiles(speeds),
        aim=f">= {AIM:.0f}",
        reached=ratio >= AIM,
        seconds=found.seconds / len(places),
        reference_seconds=found.reference_seconds / len(few),
        rate=len(places) / found.seconds,
        unit="samples/s",
        peak_gb=found.peak_gb,
        repeats=size.repeats,
        meaning=MEANING,
    )


def from_store(store: TrainingStore, places: Sequence[Place]) -> dict[str, torch.Tensor]:
    """A batch from the training store."""
    return collate_windows(
        [store.window(place.step, place.box, HISTORY) for place in places], store.statistics
    )


def from_file(file: xr.Dataset, store: TrainingStore, places: Sequence[Place]) -> dict[str, torch.Tensor]:
    """The same batch by plain indexing of the file."""
    windows = []
    for place in places:
        part = file.isel(place.ranges)
        values = {name: part[name].values for name in VARIABLES if name != "ws10"}
        values["ws10"] = np.hypot(values["u10"], values["v10"])
        fields = np.stack([values[name] for name in VARIABLES], axis=1, dtype=np.float32, casting="same_kind")
        windows.append(
            Window(
                fields[:, :, ::-1],  # the file runs from north to south
                VARIABLES,
                part["time"].values.astype("datetime64[s]"),
                part["latitude"].values[::-1],
                part["longitude"].values,
            )
        )
    return collate_windows(windows, store.statistics)


def _places(store: TrainingStore, file: xr.Dataset, num: int) -> list[Place]:
    """Random windows away from poles and Greenwich."""
    latitude, longitude = file["latitude"].values, file["longitude"].values
    drawn = sample_boxes(
        np.arange(HISTORY - 1, len(store.time)),
        num,
        size=(DEGREES, DEGREES),
        seed=0,
        within=Box(0.0, 180.0, 160.0, 340.0),
    )
    places = []
    for step, box in drawn:
        window = store.window(step, box, HISTORY)
        rows_ = np.flatnonzero(np.isin(latitude, window.latitude))
        columns = np.flatnonzero(np.isin(longitude, window.longitude))
        ranges = {
            "time": slice(step - HISTORY + 1, step + 1),
            "latitude": slice(int(rows_[0]), int(rows_[-1]) + 1),
            "longitude": slice(int(columns[0]), int(columns[-1]) + 1),
        }
        places.append(Place(step, box, ranges))
    return places


def _batches(places: Sequence[Place]) -> list[Sequence[Place]]:
    return [places[first : first + BATCH] for first in range(0, len(places), BATCH)]


def _check(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-4, msg=f"{name} differs")
