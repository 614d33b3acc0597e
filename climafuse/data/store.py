"""The training store: canonical fields on disk, laid out for random windows.

A folder that is either whole or absent:

    manifest.json    format, provenance, splits, and size and SHA-256 of every other file
    fields.zarr/     Zarr v3: fields [time, variable, latitude, longitude] float32 and their coordinates
    statistics.json  mean and standard deviation of each variable, from the training split only
    pairs.parquet    climate-text pairs, if any

The file of a step holds all variables, uncompressed and in tiles (`Tiling`), so that a window is a few short reads at
known places of it. Measured on two cores while files are in the memory of the system, windows of 2 steps, 6 variables
and 16 by 16 degrees a second, at 1 and at 0.25 degrees: read like this 28,000 and 7,000; through zarr from the same
files 460 and 110; through xarray from NetCDF 660 and 380. Compression would save 40 to 55 % of the disk and cost an
order of magnitude and more.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from climafuse.data.anomalies import Season, rebase
from climafuse.data.files import write_sparse
from climafuse.data.lazy import reading
from climafuse.data.normalization import (
    Statistics,
    area_weights,
    check_dimensions,
    check_steps,
    compute_statistics,
    field_moments,
    merge_statistics,
    statistics_from_dict,
    statistics_to_dict,
)
from climafuse.data.pair_table import PairTable
from climafuse.data.pairs import Pair, iterate_pairs, write_pairs
from climafuse.data.parts import Parts, folder_in_parts
from climafuse.data.provenance import READERS, identity, plain, provenance
from climafuse.data.splits import SPLIT_NAMES, SplitName, Splits, split_by_periods, split_by_time
from climafuse.data.stored_fields import FIELDS, StoredFields, altered, chunk_path
from climafuse.data.tiles import Tiling
from climafuse.data.times import TimeLike, as_time_axis, find_time, format_time
from climafuse.data.window import Box, Grid, Window, locate_history, locate_range
from climafuse.errors import (
    ClimafuseError,
    DataError,
    OutOfRangeError,
    OutputError,
    PairsError,
    StoreError,
    UsageError,
)
from climafuse.json_file import read_object
from climafuse.manifest import sha256, versions

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 2
MANIFEST, STATISTICS, PAIRS = "manifest.json", "statistics.json", "pairs.parquet"
DEFAULT_GAP = datetime.timedelta(days=1)
MEMORY_BYTES = 2**28  # a larger store is read from the disk; in memory its content is checked, too
BLOCK_BYTES = 64 * 2**20  # read from the source at once, by each worker
WORKERS = min(4, os.cpu_count() or 1)  # threads that prepare; more wait for each other at the file libraries


@dataclass(frozen=True, eq=False)
class TrainingStore:
    """Fields, statistics, splits and pairs of one training set.

    Args:
        variables: Length V, canonical names.
        time: [T] datetime64[s] or cftime dates.
        latitude: [H] degrees north, ascending.
        longitude: [W] degrees east, ascending in [0, 360).
        statistics: Of the training split (`compute_statistics`).
        splits: Steps of train, validation and test.
        fields: [T, V, H, W] float32, in memory or stored.
        all_pairs: Pairs about any split, or none.
        tolerance: How far the time of a pair may be from that of a field; None for not at all.
        provenance: Where the fields come from: sources, attributes, versions; JSON.
    """

    variables: tuple[str, ...]
    time: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    statistics: Statistics
    splits: Splits
    fields: np.ndarray | StoredFields
    all_pairs: PairTable = field(default_factory=PairTable)
    tolerance: np.timedelta64 | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def license(self) -> str | None:
        """License of the fields, as their source states it."""
        stated = self.provenance.get("attributes", {}).get("license")
        return None if stated is None else str(stated)

    @functools.cached_property
    def _grid(self) -> Grid:
        return Grid(self.latitude, self.longitude)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, memory_bytes: int = MEMORY_BYTES, verify: bool = False
    ) -> TrainingStore:
        """Open a store that `prepare` wrote.

        The manifest, the presence and size of every file, and the content of all but the fields are always
        checked. Fields are checked as they are loaded into memory.

        Args:
            path: The folder.
            memory_bytes: Fields of at most this size are loaded; larger ones stay on disk.
            verify: Check the content of fields that stay on disk, too.

        Raises:
            StoreError: The store is incomplete, altered, or of another format.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        _check_files(folder, manifest, content=verify)
        try:
            return cls._read(folder, manifest, memory_bytes)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise altered(folder / MANIFEST) from error

    @classmethod
    def _read(cls, folder: Path, manifest: dict[str, Any], memory_bytes: int) -> TrainingStore:
        """Read what `open` has checked. Parts that do not fit together raise what they raise."""
        shape = tuple(manifest["shape"])
        arrays = folder / FIELDS
        time = np.fromfile(arrays / "time" / "c.0", dtype="<i8")
        latitude = np.fromfile(arrays / "latitude" / "c.0", dtype="<f8")
        longitude = np.fromfile(arrays / "longitude" / "c.0", dtype="<f8")
        if shape != (len(time), len(manifest["variables"]), len(latitude), len(longitude)):
            raise ValueError(f"fields of shape {shape}")
        splits = {name: _indices(ranges, len(time)) for name, ranges in manifest["splits"].items()}
        digests = None
        if 4 * math.prod(shape) <= memory_bytes:
            names = (chunk_path(Path(), step).as_posix() for step in range(len(time)))
            digests = [manifest["files"][name][1] for name in names]
        return cls(
            variables=tuple(manifest["variables"]),
            time=_decode_time(time, manifest["calendar"]),
            latitude=latitude,
            longitude=longitude,
            statistics=statistics_from_dict(read_object(folder / STATISTICS)),
            splits=Splits(**splits),
            fields=StoredFields(folder, shape, digests),
            all_pairs=PairTable(() if manifest["pairs"] is None else iterate_pairs(folder / PAIRS)),
            tolerance=_seconds(manifest["tolerance_seconds"]),
            provenance=manifest["provenance"],
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: xr.Dataset,
        *,
        splits: Splits | None = None,
        gap: datetime.timedelta = DEFAULT_GAP,
        pairs: Iterable[Pair] = (),
        tolerance: np.timedelta64 | None = None,
    ) -> TrainingStore:
        """A store in memory, without a folder.

        Args:
            dataset: Canonical.
            splits: None for 60, 20 and 20 % of the steps.
            gap: Between the splits, where they are not given.
            pairs: Pairs about the fields.
            tolerance: How far the time of a pair may be from that of a field; None for not at all.

        Raises:
            PairsError: A pair is about a time or place that the fields do not hold.
        """
        whole = Window.from_dataset(dataset)
        splits = splits or split_by_time(whole.time, gap=gap)
        store = cls(
            whole.variables,
            whole.time,
            whole.latitude,
            whole.longitude,
            compute_statistics(dataset, whole.time[splits.train]),
            splits,
            whole.fields,
            tolerance=tolerance,
        )
        return store.with_pairs(pairs)

    def with_pairs(
        self, pairs: str | os.PathLike[str] | Iterable[Pair], *, size: tuple[float, float] = (16.0, 16.0)
    ) -> TrainingStore:
        """The same store with these pairs instead of its own.

        Args:
            pairs: The pairs, or a file of them.
            size: Height and width, in degrees, of the box around a place that the file gives as a point or a
                name.

        Raises:
            PairsError: A pair is malformed, or about a time or place that the fields do not hold: the message
                names its line in the file, or its number from 1, and why.
        """
        if isinstance(pairs, str | os.PathLike):
            pairs = iterate_pairs(pairs, size=size)
        return replace(self, all_pairs=PairTable(self._checked(pairs)))

    def to_dataset(self) -> xr.Dataset:
        """The fields as a canonical dataset, read on use where they lie on disk."""
        import xarray as xr

        names, held = self.variables, self.provenance.get("variables", {})
        if isinstance(self.fields, StoredFields):
            stored = xr.open_zarr(self.fields.folder / FIELDS, chunks=None, consolidated=False)[
                "fields"
            ].variable
        else:
            stored = xr.Variable(("time", "variable", "latitude", "longitude"), self.fields)
        fields = {name: stored.isel(variable=index).copy(deep=False) for index, name in enumerate(names)}
        for name, field_ in fields.items():
            field_.attrs = dict(held.get(name, {}))
        coordinates = {"time": self.time, "latitude": self.latitude, "longitude": self.longitude}
        return xr.Dataset(fields, coordinates)

    def window(self, time_index: int, box: Box | None = None, history: int = 1) -> Window:
        """Cut out a window.

        Args:
            time_index: Step of the valid time.
            box: Where; None for everywhere.
            history: Number of steps that end there.

        Returns:
            The window, a copy.

        Raises:
            OutOfRangeError: The history or the box lies outside the fields.
        """
        return self.cut(locate_history(self.time, time_index, history), box)

    def pair_window(self, pair: Pair, history: int = 1) -> Window:
        """The window a pair is about.

        Args:
            pair: The pair. Variables it withholds are still there: see `facts.withhold`.
            history: Number of steps for a pair about one time; one about a time range has all steps in it.

        Returns:
            The window, a copy.

        Raises:
            OutOfRangeError: The time, the history or the place lies outside the fields.
        """
        return self.cut(self._steps(pair.times, history), pair.place)

    def will_need(self, windows: Iterable[tuple[slice, Box | None]]) -> None:
        """Have windows that will be cut read from the disk, all at once rather than one after the other.

        Args:
            windows: Steps and box of each, as `cut` takes them.
        """
        if isinstance(self.fields, StoredFields):
            for steps, box in windows:
                rows, columns = self._grid.locate(box)
                for step in range(steps.start, steps.stop):
                    for piece in columns:
                        self.fields.will_need(step, rows, piece)

    def cut(self, steps: slice, box: Box | None) -> Window:
        """Cut out a window by steps.

        Args:
            steps: First step, and one past the last; within the time axis.
            box: Where; None for everywhere.

        Returns:
            The window, a copy.

        Raises:
            OutOfRangeError: The box lies outside the fields.
        """
        rows, columns = self._grid.locate(box)
        height = rows.stop - rows.start
        width = sum(piece.stop - piece.start for piece in columns)
        fields = np.empty((steps.stop - steps.start, len(self.variables), height, width), dtype=np.float32)
        for index, step in enumerate(range(steps.start, steps.stop)):
            left = 0
            for piece in columns:
                right = left + piece.stop - piece.start
                if isinstance(self.fields, StoredFields):
                    fields[index, :, :, left:right] = self.fields.read(step, rows, piece)
                else:
                    fields[index, :, :, left:right] = self.fields[step, :, rows, piece]
                left = right
        longitude = np.concatenate([self.longitude[piece] for piece in columns])
        return Window(fields, self.variables, self.time[steps], self.latitude[rows], longitude)

    def cells(self, steps: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Read single cells.

        Args:
            steps: [T] steps.
            rows: [P] row of each cell.
            columns: [P] its column.

        Returns:
            [T, V, P]
        """
        fields = self.fields
        if not isinstance(fields, StoredFields):
            return np.moveaxis(fields[steps[:, None], :, rows, columns], -1, 1)  # advanced indices come first
        found = np.empty((len(steps), len(self.variables), len(rows)), dtype=np.float32)
        for time, step in enumerate(steps.tolist()):
            for cell, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
                part = fields.read(step, slice(row, row + 1), slice(column, column + 1))
                found[time, :, cell] = part[:, 0, 0]
        return found

    def pairs(self, split: SplitName, history: int = 1) -> list[Pair]:
        """Pairs whose whole window lies in a split, in their order.

        Args:
            split: The split.
            history: Number of steps for a pair about one time.
        """
        return [self.all_pairs[position] for position in self.pair_steps(split, history)[0].tolist()]

    def pair_steps(self, split: SplitName, history: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Which pairs have their whole window in a split, and the steps of it.

        Args:
            split: The split.
            history: Number of steps for a pair about one time.

        Returns:
            [N] positions in `all_pairs`, ascending; [N, 2] first step of each window, and one past the last.
        """
        inside = np.zeros(len(self.time), dtype=bool)
        inside[self.splits.indices(split)] = True
        times, rows = self.all_pairs.windows()  # many pairs are about one time
        steps = np.zeros((len(times), 2), dtype=np.int64)
        for row, (first, last) in enumerate(times):
            with contextlib.suppress(OutOfRangeError):  # the history begins before the first time
                found = self._steps((first, last), history)
                if inside[found].all():
                    steps[row] = found.start, found.stop
        steps = steps[rows]
        positions = np.flatnonzero(steps[:, 1])
        return positions, steps[positions]

    def _checked(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Pass pairs on whose time and place the fields hold."""
        known: set[Any] = set()
        for number, pair in enumerate(pairs, start=1):
            try:
                if pair.times not in known:
                    self._steps(pair.times, 1)
                    known.add(pair.times)
                if pair.place not in known:
                    self._grid.locate(pair.place)
                    known.add(pair.place)
            except ClimafuseError as error:
                raise PairsError(
                    f"{pair.where or f'pair {number}'}: {error.argument}",
                    expected=error.expected,
                    received=error.received,
                    remedy=error.remedy,
                ) from error
            yield pair

    def _steps(self, times: tuple[TimeLike, TimeLike], history: int) -> slice:
        first, last = times
        if first == last:
            return locate_history(self.time, find_time(self.time, last, tolerance=self.tolerance), history)
        return locate_range(self.time, first, last, tolerance=self.tolerance)


def prepare(
    source: Any,
    destination: str | os.PathLike[str],
    *,
    variables: Iterable[str] | None = None,
    splits: Splits | Mapping[str, tuple[TimeLike, TimeLike]] | None = None,
    gap: datetime.timedelta = DEFAULT_GAP,
    pairs: str | os.PathLike[str] | Iterable[Pair] | None = None,
    tolerance: np.timedelta64 | None = None,
    anomalies: Season | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingStore:
    """Write a training store. It appears whole, or not at all.

    Memory stays the same however large the source is. An interrupted call that is repeated goes on where it
    stopped, and the store is the one an uninterrupted call would have written, but for the time noted in it as
    that of its creation. Until then its parts are in a hidden folder beside the destination.

    Args:
        source: What `open_climate` opens: a path, glob, URI or dataset.
        destination: The folder to make; it must not exist.
        variables: Canonical names; None for all that the source holds.
        splits: Steps, or first and last time, of each split; None for 60, 20 and 20 % of the steps.
        gap: Between the splits, where their steps are not given.
        pairs: Climate-text pairs, or a file of them.
        tolerance: How far the time of a pair may be from that of a field; None for not at all.
        anomalies: Measure fields of anomalies against the training times (`rebase`): "month" each calendar month by
            itself, "all" all times together; None leaves them as they are.
        progress: Called with the number of steps written and of all, first with those that an interrupted
            call left.

    Returns:
        The store, opened.

    Raises:
        UsageError: The destination exists, the splits make no sense, or an interrupted call had another source,
            variables, splits or anomalies.
        PairsError: A pair is malformed, or about a time or place that the fields do not hold.
        OutputError: There is no room on the disk, or it cannot be written.
    """
    import xarray as xr

    from climafuse.data.sources import open_climate

    destination = Path(destination)
    if destination.exists():
        raise UsageError(
            "destination",
            expected="a folder that does not exist yet",
            received=destination,
            remedy="Choose another name, or remove the folder.",
        )
    with open_climate(source, variables=None if variables is None else list(variables)) as dataset:
        time = as_time_axis(dataset["time"].values)
        if not isinstance(splits, Splits):
            splits = split_by_periods(time, splits, gap=gap) if splits else split_by_time(time, gap=gap)
        check_dimensions(dataset)
        check_steps(time, splits.train)
        if anomalies is not None:
            dataset = rebase(dataset, splits.train, anomalies)
        draft = TrainingStore(
            tuple(str(name) for name in dataset.data_vars),
            time,
            dataset["latitude"].values.astype(np.float64),
            dataset["longitude"].values.astype(np.float64),
            dataset[[]],  # the statistics come with the fields
            splits,
            np.empty(0),
            tolerance=tolerance,
        ).with_pairs(pairs or ())
        files = identity(source)
        local = all(count > 0 for _, count, _ in files)
        with folder_in_parts(
            destination,
            {**_plan(draft, files), "anomalies": anomalies},
            details=lambda: provenance(source, dataset),
            repeatable=not isinstance(source, xr.Dataset),
            final=(DataError,) if local else (),  # what is far away may come back
        ) as parts:
            if not parts.records:
                _write_frame(dataset, draft, parts.folder / FIELDS)
            _write_fields(dataset, draft, parts, progress or (lambda done, total: None))
            for leftover in parts.folder.iterdir():  # of a run that was killed between here and the end
                if leftover.is_file():
                    leftover.unlink()
            records = sorted(parts.records, key=lambda record: record["first"])
            digests = [digest for record in records for digest in record["sha256"]]
            moments = [moment for record in records for moment in record["moments"]]
            steps = np.unique(splits.train)
            draft = replace(draft, statistics=merge_statistics(dataset, steps, np.array(moments)))
            (parts.folder / STATISTICS).write_text(
                json.dumps(statistics_to_dict(draft.statistics), indent=1), encoding="utf-8"
            )
            if draft.all_pairs:
                write_pairs(draft.all_pairs, parts.folder / PAIRS)
            _write_manifest(parts.folder, draft, parts.details, digests)
    return TrainingStore.open(destination)


def _plan(draft: TrainingStore, files: list[list[Any]]) -> dict[str, Any]:
    """What a preparation is. One that was interrupted goes on only if all of this is as it was."""
    grid = hashlib.sha256(draft.latitude.tobytes() + draft.longitude.tobytes())
    return {
        "format": FORMAT,
        "source": files,
        "variables": list(draft.variables),
        "times": hashlib.sha256("\n".join(map(format_time, draft.time)).encode()).hexdigest(),
        "grid": grid.hexdigest(),
        "splits": {name: _ranges(draft.splits.indices(name)) for name in SPLIT_NAMES},
        "versions": versions(READERS),
    }


def _write_frame(dataset: xr.Dataset, draft: TrainingStore, path: Path) -> None:
    """All of the Zarr store but the chunks of the fields."""
    import zarr

    shape = (len(draft.time), len(draft.variables), len(draft.latitude), len(draft.longitude))
    encoded, units, calendar = _encode_time(draft.time)
    group = zarr.create_group(path, attributes={**plain(dataset.attrs), "variables": list(draft.variables)})

    def create(
        name: str,
        values_shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dims: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        return group.create_array(
            name,
            shape=values_shape,
            chunks=chunks,
            dimension_names=dims,
            compressors=None,
            filters=None,
            # One flat folder of chunk files, each at its plain name.
            chunk_key_encoding={"name": "default", "separator": "."},
            config={"write_empty_chunks": True},
            **kwargs,
        )

    for name, values, attributes in (
        ("time", encoded, {"units": units, "calendar": calendar, "standard_name": "time"}),
        ("latitude", draft.latitude, {"units": "degrees_north", "standard_name": "latitude"}),
        ("longitude", draft.longitude, {"units": "degrees_east", "standard_name": "longitude"}),
    ):
        array = create(name, values.shape, values.shape, (name,), dtype=values.dtype, attributes=attributes)
        array[:] = values
    tiling = Tiling(*shape[1:])
    create(
        "fields",
        shape,
        (1, *tiling.tile),
        ("time", "variable", "latitude", "longitude"),
        shards=(1, *tiling.shard),
        dtype="float32",
        fill_value=float("nan"),
        attributes={str(name): plain(array.attrs) for name, array in dataset.data_vars.items()},
    )


def _write_fields(
    dataset: xr.Dataset, draft: TrainingStore, parts: Parts, progress: Callable[[int, int], None]
) -> None:
    """The chunks that are not written yet, in blocks of steps.

    Blocks are read, converted, measured and written by the threads of Dask. The libraries of NetCDF read one at
    a time; the rest goes on meanwhile. Each block is recorded as soon as it is on the disk.
    """
    import dask

    total = len(draft.time)
    tiling = Tiling(len(draft.variables), len(draft.latitude), len(draft.longitude))
    step_bytes = 4 * len(draft.variables) * len(draft.latitude) * len(draft.longitude)
    written = np.zeros(total, dtype=bool)
    for record in parts.records:
        written[record["first"] : record["last"]] = True
    missing = np.flatnonzero(~written)
    _check_room(parts.folder, tiling.file_bytes * len(missing))
    train = np.zeros(total, dtype=bool)
    train[draft.splits.train] = True
    weights = area_weights(draft.latitude)
    where = str(dataset.attrs.get("climate_source", "dataset"))

    done = total - len(missing)
    recording = threading.Lock()

    def write(first: int, last: int) -> Exception | None:
        nonlocal done
        digests, moments = [], []
        try:
            with reading(where):
                fields = Window.from_dataset(dataset.isel(time=slice(first, last))).fields
            for step, values in enumerate(fields, start=first):
                content = tiling.encode(values)
                digests.append(hashlib.sha256(content).hexdigest())
                write_sparse(chunk_path(parts.folder, step), content)
                if train[step]:
                    moments.append([field_moments(field, weights) for field in values])
            with recording:
                parts.add({"first": first, "last": last, "sha256": digests, "moments": moments})
                done += last - first
                progress(done, total)
        except Exception as error:  # raised once the blocks beside it are done
            return error
        return None

    size = max(1, BLOCK_BYTES // step_bytes)
    runs = np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1) if len(missing) else []
    blocks = [
        (first, min(first + size, int(run[-1]) + 1))
        for run in runs
        for first in range(int(run[0]), int(run[-1]) + 1, size)
    ]
    progress(done, total)
    # Left when all threads have ended: none writes to what is cleared away then.
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="prepare") as pool:
        for start in range(0, len(blocks), 2 * WORKERS):
            tasks = [dask.delayed(write, pure=False)(*block) for block in blocks[start : start + 2 * WORKERS]]
            for error in dask.compute(*tasks, scheduler="threads", pool=pool):
                if error is not None:
                    raise error


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            str(folder),
            expected=f"room for {needed:,} bytes of fields",
            received=f"{free:,} bytes free",
            remedy="Make room, choose another place, or prepare fewer variables or times.",
        )


def _write_manifest(
    folder: Path, draft: TrainingStore, provenance: dict[str, Any], digests: Sequence[str]
) -> None:
    """Size and hash of every file; the digests are those of the chunks, which need not be read again."""
    chunks = {chunk_path(folder, step): digest for step, digest in enumerate(digests)}
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name] = [path.stat().st_size, chunks.get(path) or sha256(path)]
    manifest = {
        "format": FORMAT,
        "kind": "climafuse training store",
        "variables": draft.variables,
        "shape": [len(draft.time), len(draft.variables), len(draft.latitude), len(draft.longitude)],
        "calendar": _encode_time(draft.time)[2],
        "splits": {name: _ranges(getattr(draft.splits, name)) for name in (*SPLIT_NAMES, "dropped")},
        "pairs": {name: len(draft.pair_steps(name)[0]) for name in SPLIT_NAMES} if draft.all_pairs else None,
        "tolerance_seconds": None
        if draft.tolerance is None
        else int(draft.tolerance / np.timedelta64(1, "s")),
        "provenance": provenance,
        "files": files,
    }
    manifest["digest"] = _digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise StoreError(
            str(folder),
            expected="the folder of a training store",
            received="a folder without manifest" if folder.is_dir() else "no such folder",
            remedy="Make the store with `climafuse data prepare`.",
        )
    try:
        manifest = read_object(path)
    except ValueError as error:
        raise altered(path) from error
    if manifest.get("format") != FORMAT:
        raise StoreError(
            str(path),
            expected=f"a training store of format {FORMAT}",
            received=f"format {manifest.get('format')}",
            remedy="Make the store again with this version of climafuse.",
        )
    if manifest.get("digest") != _digest(manifest) or not _is_manifest(manifest):
        raise altered(path)
    return manifest


def _is_manifest(content: dict[str, Any]) -> bool:
    """Anybody can write a manifest with a digest that fits: whether it has the parts that are used."""
    shape, files, variables = (content.get(key) for key in ("shape", "files", "variables"))
    return (
        isinstance(shape, list)
        and len(shape) == 4
        and all(isinstance(size, int) and size > 0 for size in shape)
        and isinstance(variables, list)
        and all(isinstance(name, str) for name in variables)
        and isinstance(files, dict)
        and all(isinstance(entry, list) and len(entry) == 2 for entry in files.values())
        and all(isinstance(content.get(key), dict) for key in ("splits", "provenance"))
        and {"calendar", "pairs", "tolerance_seconds"} <= content.keys()
        and (content["tolerance_seconds"] is None or isinstance(content["tolerance_seconds"], int))
    )


def _check_files(folder: Path, manifest: dict[str, Any], *, content: bool) -> None:
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        _check_inside(folder, name)
        try:
            found = path.stat().st_size
        except OSError as error:
            raise StoreError(
                str(path),
                expected="a file of the store",
                received="none",
                remedy="Copy or make the store again.",
            ) from error
        if found != size:
            raise StoreError(
                str(path),
                expected=f"{size} bytes",
                received=f"{found}",
                remedy="Copy or make the store again.",
            )
        if (content or not name.startswith(f"{FIELDS}/fields/c.")) and sha256(path) != digest:
            raise altered(path)


def _check_inside(folder: Path, name: str) -> None:
    """Refuse names and links that lead out of the store: what lies there would be read and its hash told."""
    inner = PurePosixPath(name)
    links = (folder / part for part in (inner, *inner.parents[:-1]))
    if inner.is_absolute() or ".." in inner.parts or any(path.is_symlink() for path in links):
        raise StoreError(
            str(folder / MANIFEST),
            expected="files of the store",
            received=f"{name!r}, which leads out of it",
            remedy="Make the store again; a link may stand for the whole folder, not for parts of it.",
        )


def _digest(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _ranges(indices: np.ndarray) -> list[list[int]]:
    """Ascending indices as ranges [first, end): a million steps of a block take one line."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(indices, breaks) if len(run)]


def _indices(ranges: list[list[int]], num: int) -> np.ndarray:
    if not all(0 <= first <= end <= num for first, end in ranges):
        raise ValueError("splits beyond the fields")
    return np.concatenate([np.arange(0), *(np.arange(first, end) for first, end in ranges)])


def _encode_time(time: np.ndarray) -> tuple[np.ndarray, str, str]:
    """Times as whole seconds since 1970 in their calendar: values, CF units, CF calendar."""
    units = "seconds since 1970-01-01"
    if time.dtype != object:
        return time.astype("datetime64[s]").astype("<i8"), units, "proleptic_gregorian"
    import cftime

    calendar = time[0].calendar
    return np.round(cftime.date2num(time, units, calendar=calendar)).astype("<i8"), units, calendar


def _decode_time(values: np.ndarray, calendar: str) -> np.ndarray:
    if calendar == "proleptic_gregorian":
        return values.astype("datetime64[s]")
    import cftime

    times: np.ndarray = cftime.num2date(values, "seconds since 1970-01-01", calendar=calendar)
    return times


def _seconds(number: int | None) -> np.timedelta64 | None:
    return None if number is None else np.timedelta64(number, "s")
