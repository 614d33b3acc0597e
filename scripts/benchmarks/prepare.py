"""A hundred thousand pairs about fields that are larger than memory: preparing the store, and one pass of the loader.

The source is a lazy dataset of 19,800 six-hour steps at 1° with the six default variables, 31 GB. Its values are
computed when they are read, from tables of time, latitude and longitude: waves that travel, and noise from a hash of
the place and the time, so that no two fields are alike and any window can be computed again to compare. They are there
between 20° N and 65° N; the rest of the globe is zero, which the store keeps as holes: 31 GB of fields take a good
third of it on the disk. All pairs are about places between those latitudes.

Preparing reads the source, hashes and measures every field, and writes; compared with only reading the source. Then
batches come through `Examples`, `ReadAheadSampler` and `ExampleCollator`, as training has them: first in turn with
training steps of the default configuration, which gives the wait for a batch beside the step; then all of them with
nothing in between, in the training process itself (the default) and with two spawned workers. Before each, the system
is asked to drop what it keeps of the files, so that the fields come from the disk. Peaks of resident memory are those
of the whole process with the language model in it; with workers, the sum over all processes, which counts shared
pages several times.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from torch.utils.data import DataLoader
from xarray.core import indexing

from climafuse.data.batch import EpochSampler, sample_boxes
from climafuse.data.lazy import LazyArray
from climafuse.data.pair_table import PairTable
from climafuse.data.pairs import Pair, write_pairs
from climafuse.data.sources import open_climate
from climafuse.data.splits import split_by_time
from climafuse.data.store import DEFAULT_GAP, TrainingStore, prepare
from climafuse.data.stored_fields import chunk_path
from climafuse.data.window import Box, Grid, Window, select_window
from climafuse.facts import describe
from climafuse.training.config import BackboneConfig, DataConfig, RunConfig
from climafuse.training.dataset import ExampleCollator, ExampleDataset, Examples
from climafuse.training.pipeline import Run, assemble, prepare_reuse
from climafuse.training.read_ahead import ReadAheadSampler
from scripts.benchmarks.inputs import DEGREES, HISTORY, VARIABLES, backbone
from scripts.benchmarks.measure import Row, Size, peak_gb, quartiles, reset_peak
from scripts.benchmarks.mock import step_loop

AIM_GB, AIM_SHARE = 2.0, 0.05
QUESTIONS = RunConfig().facts.questions_per_window
VALIDATION = 25  # one window in so many is of the validation times
STEPS = 12  # batches that are stepped on, again and again
PACED = 200  # training steps that are timed, each with the wait for a batch
ROUND = 10  # of them, before as many without a loader
SOUTH, NORTH = 20, 65
READING = "seconds of preparing ÷ seconds of reading the source, a sample of it extrapolated"
LOADING = "seconds waiting for a batch ÷ seconds of a training step of the default configuration"
LATITUDE, LONGITUDE = np.arange(-90.0, 91.0), np.arange(0.0, 360.0)
WAVES = 2


class Recipe(NamedTuple):
    """How the values of a variable are made."""

    mean: float
    waves: float
    noise: float
    unit: str


WEATHER = {
    "t2m": Recipe(283.0, 15.0, 1.0, "K"),
    "u10": Recipe(2.0, 8.0, 1.0, "m s-1"),
    "v10": Recipe(0.0, 8.0, 1.0, "m s-1"),
    "msl": Recipe(101300.0, 1500.0, 20.0, "Pa"),
    "tp": Recipe(0.001, 0.003, 0.0005, "m"),
}


class Weather(LazyArray):
    """One variable, computed on use. A value depends on its time and place alone, to the last bit.

    Args:
        name: Of the variable.
        steps: Number of times.
    """

    def __init__(self, name: str, steps: int) -> None:
        number = list(WEATHER).index(name)
        self.recipe = WEATHER[name]
        self.shape, self.dtype = (steps, len(LATITUDE), len(LONGITUDE)), np.dtype(np.float32)
        self.seed = np.uint32(number * 0x9E3779B9 % 2**32)
        waves = np.arange(1, WAVES + 1)[:, None]  # [K, 1] around the globe
        east = waves * np.radians(LONGITUDE) + number
        turn = 2 * np.pi * np.arange(steps) / (15.0 * waves) + number
        # [K, W], [K, T], [K, H]: from tables, so that a value is the same in whatever block it is computed
        self.east = [np.cos(east).astype(np.float32), np.sin(east).astype(np.float32)]
        self.turn = [np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)]
        self.rows = (np.cos(np.radians(LATITUDE) * (waves + 1) + number) / waves).astype(np.float32)

    def read(self, steps: slice, rows_: slice, columns: np.ndarray) -> np.ndarray:
        """Values of a window: [T, H, W] float32."""
        return self._read((steps, rows_, columns))

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        steps, rows, columns = (np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.shape, key, strict=True))
        values = np.zeros((len(steps), len(rows), len(columns)), dtype=np.float32)
        kept = np.flatnonzero((LATITUDE[rows] >= SOUTH) & (LATITUDE[rows] <= NORTH))
        if len(kept):
            values[:, kept[0] : kept[-1] + 1] = self._compute(steps, rows[kept], columns)
        return values[tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)]

    def _compute(self, steps: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        height, width = self.shape[1:]
        hashed = (steps * (height * width) % 2**32).astype(np.uint32)[:, None, None] + (
            rows[:, None] * width + columns
        ).astype(np.uint32)
        hashed += self.seed
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finalizer of MurmurHash3
            hashed ^= hashed >> np.uint32(shift)
            hashed *= np.uint32(factor)
        mean, amplitude, noise = (np.float32(number) for number in self.recipe[:3])
        values = hashed.astype(np.float32)
        values *= np.float32(2.0**-32) * noise
        values += mean
        for wave, profile in enumerate(self.rows[:, rows]):
            for east, turn in zip(self.east, self.turn, strict=True):
                along = east[wave, columns] * (turn[wave, steps, None] * amplitude)  # [T, W]
                values += profile[:, None] * along[:, None, :]
        return np.maximum(values, np.float32(0), out=values) if self.recipe.unit == "m" else values


def _times(steps: int) -> np.ndarray:
    return np.datetime64("2011-01-01", "s") + np.arange(steps) * np.timedelta64(6, "h")


def source(steps: int) -> xr.Dataset:
    """Return the fields, lazy."""
    return xr.Dataset(
        {
            name: xr.Variable(
                ("time", "latitude", "longitude"),
                indexing.LazilyIndexedArray(Weather(name, steps)),
                {"units": WEATHER[name].unit},
            )
            for name in WEATHER
        },
        coords={"time": _times(steps), "latitude": LATITUDE, "longitude": LONGITUDE},
    )


def texts(steps: int, num: int) -> Iterator[Pair]:
    """Make pairs about random windows of the training and, a few, of the validation times."""
    splits = split_by_time(_times(steps), gap=DEFAULT_GAP)
    fields, grid = {name: Weather(name, steps) for name in WEATHER}, Grid(LATITUDE, LONGITUDE)
    within = Box((SOUTH + NORTH) / 2, 180.0, NORTH - SOUTH - DEGREES, 360.0)
    windows = num // QUESTIONS
    few = max(1, windows // VALIDATION)
    drawn = [
        one
        for seed, (split, count) in enumerate((("train", windows - few), ("validation", few)))
        for one in sample_boxes(
            splits.valid_times(split, history=HISTORY),  # type: ignore[arg-type]
            count,
            size=(DEGREES, DEGREES),
            seed=seed,
            within=within,
        )
    ]
    return islice(
        describe(
            ((sample, _window(fields, grid, step, box)) for sample, (step, box) in enumerate(drawn)),
            seed=0,
            kinds=RunConfig().facts.kinds,
            questions_per_window=QUESTIONS,
            abstentions=RunConfig().facts.abstention_fraction,
        ),
        num,
    )


def _window(fields: Mapping[str, Weather], grid: Grid, step: int, box: Box) -> Window:
    """A window without xarray, which would take most of the time."""
    rows_, pieces = grid.locate(box)
    columns = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])
    steps = slice(step - HISTORY + 1, step + 1)
    values = {name: weather.read(steps, rows_, columns) for name, weather in fields.items()}
    values["ws10"] = np.hypot(values["u10"], values["v10"])
    return Window(
        np.stack([values[name] for name in VARIABLES], axis=1),
        VARIABLES,
        _times(step + 1)[steps],
        LATITUDE[rows_],
        LONGITUDE[columns],
    )


def rows(size: Size) -> Iterator[Row]:
    """Prepare, and pass over all pairs with and without workers."""
    with tempfile.TemporaryDirectory() as folder_:
        folder = Path(folder_)
        lazy = open_climate(source(size.steps), variables=VARIABLES)
        begin = time.perf_counter()
        write_pairs(texts(size.steps, size.pairs), folder / "pairs.parquet")
        yield _prepare(size, folder, lazy, time.perf_counter() - begin)
        _check(TrainingStore.open(folder / "store", memory_bytes=0), lazy)
        setup = assemble(
            RunConfig(
                data=DataConfig(source=str(folder / "store")), backbone=BackboneConfig(name=size.backbone)
            ),
            backbone=backbone(size.backbone),
            say=lambda line: None,
        )
        yield from _load(size, setup)


def _prepare(size: Size, folder: Path, lazy: xr.Dataset, describing: float) -> Row:
    gc.collect()
    reset_peak()
    before = peak_gb()
    begin = time.perf_counter()
    prepare(source(size.steps), folder / "store", variables=VARIABLES, pairs=folder / "pairs.parquet")
    seconds, peak = time.perf_counter() - begin, peak_gb()
    block = min(size.steps, 400)
    begin = time.perf_counter()
    for first in range(0, block, 40):
        Window.from_dataset(lazy.isel(time=slice(first, min(first + 40, block))))
    reading = (time.perf_counter() - begin) * size.steps / block
    files = [path.stat() for path in (folder / "store").rglob("*") if path.is_file()]
    apparent, disk = sum(file.st_size for file in files), sum(512 * file.st_blocks for file in files)
    ratio = seconds / reading
    return Row(
        section="prepare",
        case=f"prepare {size.pairs:,} pairs, {apparent / 1e9:.1f} GB, {disk / 1e9:.1f} GB on disk",
        ratio=ratio,
        spread=(ratio, ratio),
        aim=f"< {AIM_GB:g} GB",
        reached=peak < AIM_GB,
        seconds=seconds,
        reference_seconds=reading,
        rate=size.pairs / seconds,
        unit="pairs/s",
        peak_gb=peak,
        repeats=1,
        meaning=READING,
        details={
            "apparent_bytes": apparent,
            "disk_bytes": disk,
            "pairs": size.pairs,
            "steps": size.steps,
            "fields_bytes_a_second": apparent / seconds,
            "resident_gb_before": before,
            "seconds_making_pairs": describing,
        },
    )


def _load(size: Size, setup: Run) -> Iterator[Row]:
    name = setup.model.backbone_identity["id"]
    waits, steps, alone = _paced(setup)
    share = statistics.mean(waits) / statistics.mean(alone)
    yield Row(
        section="prepare",
        case=f"waiting for {len(waits)} batches while training, cold disk, {name}",
        ratio=share,
        spread=quartiles(tuple(wait / statistics.mean(alone) for wait in waits)),
        aim=f"<= {AIM_SHARE:g}",
        reached=share <= AIM_SHARE,
        seconds=statistics.mean(waits),
        reference_seconds=statistics.mean(alone),
        rate=len(waits) * setup.config.training.windows_per_step / (sum(waits) + sum(steps)),
        unit="windows/s",
        peak_gb=peak_gb(),
        repeats=len(waits),
        meaning=LOADING,
        details={
            "longest_wait": max(waits),
            "step_beside_the_reader": statistics.median(steps),
            "step_alone": statistics.median(alone),
        },
    )
    yield Row(
        section="prepare",
        case="a step while coming batches are read beside it",
        ratio=statistics.median(steps) / statistics.median(alone),
        spread=quartiles(tuple(seconds / statistics.median(alone) for seconds in steps)),
        aim=None,
        reached=None,
        seconds=statistics.median(steps),
        reference_seconds=statistics.median(alone),
        rate=1 / statistics.median(steps),
        unit="steps/s",
        peak_gb=peak_gb(),
        repeats=len(steps),
        meaning="seconds of a step ÷ seconds of the step with nothing beside it, in turn",
        details={},
    )
    for workers in (0, 2):
        found = _pass(setup, workers)
        a_batch = found["seconds"] / (found["batches"] - 1)
        peak = sum(found["peak_gb_by_process"])
        yield Row(
            section="prepare",
            case=f"only loading all {found['pairs']:,} pairs, {workers or 'no'} workers",
            ratio=a_batch / statistics.median(alone),
            spread=quartiles(tuple(a_batch / seconds for seconds in alone)),
            aim=f"< {AIM_GB:g} GB" if workers == 0 else None,
            reached=peak < AIM_GB if workers == 0 else None,
            seconds=a_batch,
            reference_seconds=statistics.median(alone),
            rate=found["pairs"] / found["seconds"],
            unit="pairs/s",
            peak_gb=peak,
            repeats=1,
            meaning=LOADING,
            details={**found, "windows_a_second": found["windows"] / found["seconds"]},
        )


def _loader(setup: Run, workers: int, epoch: int = 0) -> DataLoader[Any]:
    """All pairs, of training and of validation, in one of the orders of training."""
    parts = [setup.store.pair_steps(split, HISTORY) for split in ("train", "validation")]
    dataset = ExampleDataset(
        Examples(setup.store, "train", setup.store.all_pairs, *map(np.concatenate, zip(*parts, strict=True)))
    )
    batch = setup.config.training.windows_per_step
    order = EpochSampler(len(dataset), seed=setup.config.training.seed)
    order.set_epoch(epoch)
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=order if workers else ReadAheadSampler(order, dataset, batch),
        collate_fn=ExampleCollator(setup.processor, setup.thinning),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )


def _pass(setup: Run, workers: int) -> dict[str, Any]:
    """Take every pair once. The clock starts at the first batch: what starts workers is not the loader's pace."""
    gc.collect()
    _forget(setup)
    reset_peak()
    batches = iter(_loader(setup, workers))
    processes = getattr(batches, "_workers", [])
    first = next(batches)
    windows, pairs, count = len(set(first["sample"].tolist())), len(first["labels"]), 1
    peaks: list[float] = []
    begin = time.perf_counter()
    for batch in batches:
        windows += len(set(batch["sample"].tolist()))
        pairs += len(batch["labels"])
        if not count % 50:  # workers end with their last batch
            peaks = [peak_gb(process.pid) for process in processes]
        count += 1
    seconds = time.perf_counter() - begin
    return {
        "batches": count,
        "windows": windows,
        "pairs": pairs,
        "seconds": seconds,
        "peak_gb_by_process": [peak_gb(), *peaks],
    }


def _paced(setup: Run) -> tuple[list[float], list[float], list[float]]:
    """Seconds waited for each batch of all pairs; of the training steps between; of steps with nothing beside them.

    The steps are of the default configuration, on a few batches of the same loader whose frozen states are there.
    """
    batch = setup.config.training.windows_per_step
    few = Examples(setup.store, "train", *_texts_of(setup, STEPS * batch))
    prepare_reuse(replace(setup, train=few, validation=few), say=lambda line: None)
    collate = ExampleCollator(setup.processor, setup.thinning)
    setup.model.train()
    loop = step_loop(
        setup.model, [collate(few[first : first + batch]) for first in range(0, len(few), batch)], 1
    )
    loop()  # first calls allocate
    gc.collect()
    _forget(setup)
    reset_peak()
    loader = _loader(setup, 0, epoch=1)
    batches = iter(loader)
    next(batches)
    waits, steps, alone = [], [], []
    num = min(PACED, len(loader) - 1)
    for number in range(num):
        begin = time.perf_counter()
        loop()
        between = time.perf_counter()
        next(batches)
        steps.append(between - begin)
        waits.append(time.perf_counter() - between)
        if number % ROUND == ROUND - 1 or number == num - 1:
            time.sleep(0.5)  # what was begun beside the steps is done
            for _ in range(ROUND):
                begin = time.perf_counter()
                loop()
                alone.append(time.perf_counter() - begin)
    return waits, steps, alone


def _forget(setup: Run) -> None:
    """Have the system drop what it keeps of the fields in memory, so that they come from the disk."""
    for step in range(len(setup.store.time)):
        descriptor = os.open(chunk_path(setup.store.fields.folder, step), os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _texts_of(setup: Run, windows: int) -> tuple[PairTable, np.ndarray, np.ndarray]:
    """The texts of the first windows only: computing the states of all would take long, and changes no step."""
    positions, steps = setup.store.pair_steps("train", HISTORY)
    return setup.store.all_pairs, positions[: windows * QUESTIONS], steps[: windows * QUESTIONS]


def _check(store: TrainingStore, lazy: xr.Dataset) -> None:
    """Windows of the store are those of the source, bit for bit."""
    for number in np.linspace(0, len(store.all_pairs) - 1, 20).astype(int).tolist():
        pair = store.all_pairs[number]
        step = int(np.searchsorted(store.time, pair.times[1]))
        assert pair.place is not None
        expected = select_window(lazy, time=store.time[step], box=pair.place, history=HISTORY)
        np.testing.assert_array_equal(store.window(step, pair.place, HISTORY).fields, expected.fields)
        if not np.ptp(expected.field("t2m")) > 0:
            raise ArithmeticError("a field is the same everywhere: nothing was measured")
