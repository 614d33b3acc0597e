"""The training store: canonical fields on disk, laid out for random windows.

A folder that is either whole or absent:

    manifest.json    format, provenance, splits, and size and SHA-256 of every other file
    fields.zarr/     Zarr v3: fields [time, variable, latitude, longitude] float32 and their coordinates
    statistics.json  mean and standard deviation of each variable, from the training split only
    pairs.parquet    climate-text pairs, if any

One chunk holds all variables at one time, uncompressed, so that a window is a few reads from a memory map.
Measured on two cores, reads of 2 steps, 6 variables and 16 by 16 degrees a second, at 1 and at 0.25 degrees:
mapped chunks 85,000 and 19,000; the same through zarr 890 and 70, with zstd 250 and 30, with a chunk for each
variable 190 and 140; xarray from NetCDF 330 and 290. Compression saves 40 to 55 % of the disk and costs two
orders of magnitude.
"""

from __future__ import annotations

import datetime
import functools
import glob
import hashlib
import json
import mmap
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from climafuse.data.files import whole_folder
from climafuse.data.normalization import (
    Statistics,
    compute_statistics,
    statistics_from_dict,
    statistics_to_dict,
)
from climafuse.data.pairs import Pair, read_pairs, write_pairs
from climafuse.data.splits import SPLIT_NAMES, SplitName, Splits, split_by_time
from climafuse.data.times import as_time_axis, find_time
from climafuse.data.window import Box, Grid, Window, locate_history, locate_range
from climafuse.errors import ClimafuseError, OutOfRangeError, PairsError, StoreError, UsageError
from climafuse.manifest import sha256

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 1
MANIFEST, FIELDS, STATISTICS, PAIRS = "manifest.json", "fields.zarr", "statistics.json", "pairs.parquet"
DEFAULT_GAP = datetime.timedelta(days=1)
MEMORY_BYTES = 2 * 2**30
MAPPED_STEPS = 1024  # each keeps a file open
HASHED_BYTES = 4 * 2**30  # a larger source is recorded by size and time of change only
BLOCK_BYTES = 64 * 2**20  # read from the source at once
_DISTRIBUTIONS = ("climafuse", "numpy", "xarray", "zarr", "netCDF4")


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
        fields: Fields of a step by its index: [V, H, W] float32, read only.
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
    all_pairs: tuple[Pair, ...] = ()
    tolerance: np.timedelta64 | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

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
            memory_bytes: Fields of at most this size are loaded; larger ones stay mapped on disk.
            verify: Check the content of fields that stay on disk, too.

        Raises:
            StoreError: The store is incomplete, altered, or of another format.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        _check_files(folder, manifest, content=verify)
        shape = tuple(manifest["shape"])
        arrays = folder / FIELDS
        time = np.fromfile(arrays / "time" / "c.0", dtype="<i8")
        return cls(
            variables=tuple(manifest["variables"]),
            time=_decode_time(time, manifest["calendar"]),
            latitude=np.fromfile(arrays / "latitude" / "c.0", dtype="<f8"),
            longitude=np.fromfile(arrays / "longitude" / "c.0", dtype="<f8"),
            statistics=statistics_from_dict(json.loads((folder / STATISTICS).read_text(encoding="utf-8"))),
            splits=Splits(**{name: _indices(ranges) for name, ranges in manifest["splits"].items()}),
            fields=StoredFields(folder, shape, in_memory=4 * int(np.prod(shape)) <= memory_bytes),
            all_pairs=tuple(read_pairs(folder / PAIRS)) if manifest["pairs"] is not None else (),
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
            tuple(pairs),
            tolerance,
        )
        store.check_pairs()
        return store

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
        return self._cut(locate_history(self.time, time_index, history), box)

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
        return self._cut(self._steps(pair, history), pair.place)

    def pairs(self, split: SplitName, history: int = 1) -> list[Pair]:
        """Pairs whose whole window lies in a split, in their order.

        Args:
            split: The split.
            history: Number of steps for a pair about one time.
        """
        inside = np.zeros(len(self.time), dtype=bool)
        inside[self.splits.indices(split)] = True
        whole: dict[Any, bool] = {}  # many pairs are about one time
        for pair in self.all_pairs:
            if pair.times not in whole:
                try:
                    whole[pair.times] = bool(inside[self._steps(pair, history)].all())
                except OutOfRangeError:  # the history begins before the first time
                    whole[pair.times] = False
        return [pair for pair in self.all_pairs if whole[pair.times]]

    def check_pairs(self) -> None:
        """Check that the fields hold the time and place of every pair.

        Raises:
            PairsError: Names the first pair that does not fit, from 1, and why.
        """
        for number, pair in enumerate(self.all_pairs, start=1):
            try:
                self._steps(pair, 1)
                self._grid.locate(pair.place)
            except ClimafuseError as error:
                raise PairsError(
                    f"pair {number}: {error.argument}",
                    expected=error.expected,
                    received=error.received,
                    remedy=error.remedy,
                ) from error

    def _steps(self, pair: Pair, history: int) -> slice:
        first, last = pair.times
        if first == last:
            return locate_history(self.time, find_time(self.time, last, tolerance=self.tolerance), history)
        return locate_range(self.time, first, last, tolerance=self.tolerance)

    def _cut(self, steps: slice, box: Box | None) -> Window:
        rows, columns = self._grid.locate(box)
        height = rows.stop - rows.start
        width = sum(piece.stop - piece.start for piece in columns)
        fields = np.empty((steps.stop - steps.start, len(self.variables), height, width), dtype=np.float32)
        for index, step in enumerate(range(steps.start, steps.stop)):
            values = self.fields[step]  # [V, H, W]
            left = 0
            for piece in columns:
                right = left + piece.stop - piece.start
                fields[index, :, :, left:right] = values[:, rows, piece]
                left = right
        longitude = np.concatenate([self.longitude[piece] for piece in columns])
        return Window(fields, self.variables, self.time[steps], self.latitude[rows], longitude)


class StoredFields:
    """Fields of a store by step, from memory or mapped from disk.

    Args:
        folder: The store.
        shape: (T, V, H, W).
        in_memory: Load all now, and check them against the manifest.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], *, in_memory: bool) -> None:
        self.folder = folder
        self.shape = shape
        self.in_memory = in_memory
        self._loaded = self._load() if in_memory else None
        # Least recently used maps are closed first; the pages themselves are the system's to keep or drop.
        self._map_cached = functools.lru_cache(maxsize=MAPPED_STEPS)(self._map)

    def __getitem__(self, step: int) -> np.ndarray:
        """Fields of a step: [V, H, W] float32, read only."""
        return self._map_cached(int(step)) if self._loaded is None else self._loaded[step]

    def __reduce__(self) -> tuple[Any, ...]:
        """A loader worker opens the files for itself rather than being sent their content."""
        return functools.partial(StoredFields, in_memory=self.in_memory), (self.folder, self.shape)

    def _map(self, step: int) -> np.ndarray:
        with self._path(step).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype="<f4").reshape(self.shape[1:])

    def _load(self) -> np.ndarray:
        files = _read_manifest(self.folder)["files"]
        fields = np.empty(self.shape, dtype="<f4")
        for step in range(self.shape[0]):
            path = self._path(step)
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != files[path.relative_to(self.folder).as_posix()][1]:
                raise _altered(path)
            fields[step] = np.frombuffer(content, dtype="<f4").reshape(self.shape[1:])
        fields.setflags(write=False)
        return fields

    def _path(self, step: int) -> Path:
        return self.folder / FIELDS / "fields" / f"c.{step}.0.0.0"


def prepare(
    source: Any,
    destination: str | os.PathLike[str],
    *,
    variables: Iterable[str] | None = None,
    splits: Splits | None = None,
    gap: datetime.timedelta = DEFAULT_GAP,
    pairs: str | os.PathLike[str] | Iterable[Pair] | None = None,
    tolerance: np.timedelta64 | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingStore:
    """Write a training store. It appears whole, or not at all.

    Args:
        source: What `open_climate` opens: a path, glob, URI or dataset.
        destination: The folder to make; it must not exist.
        variables: Canonical names; None for all that the source holds.
        splits: None for 60, 20 and 20 % of the steps.
        gap: Between the splits, where they are not given.
        pairs: Climate-text pairs, or a file of them.
        tolerance: How far the time of a pair may be from that of a field; None for not at all.
        progress: Called with the number of steps written and of all.

    Returns:
        The store, opened.

    Raises:
        UsageError: The destination exists, or the splits make no sense.
        PairsError: A pair is malformed, or about a time or place that the fields do not hold.
    """
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
        splits = splits or split_by_time(time, gap=gap)
        statistics = compute_statistics(dataset, time[splits.train])
        if isinstance(pairs, str | os.PathLike):
            pairs = read_pairs(pairs)
        draft = TrainingStore(
            tuple(str(name) for name in dataset.data_vars),
            time,
            dataset["latitude"].values.astype(np.float64),
            dataset["longitude"].values.astype(np.float64),
            statistics,
            splits,
            np.empty(0),
            tuple(pairs or ()),
            tolerance,
        )
        draft.check_pairs()
        with whole_folder(destination) as folder:
            _write_fields(dataset, draft, folder / FIELDS, progress)
            (folder / STATISTICS).write_text(
                json.dumps(statistics_to_dict(statistics), indent=1), encoding="utf-8"
            )
            if draft.all_pairs:
                write_pairs(draft.all_pairs, folder / PAIRS)
            _write_manifest(folder, draft, _provenance(source, dataset))
    return TrainingStore.open(destination)


def _write_fields(
    dataset: xr.Dataset, draft: TrainingStore, path: Path, progress: Callable[[int, int], None] | None
) -> None:
    import zarr

    shape = (len(draft.time), len(draft.variables), len(draft.latitude), len(draft.longitude))
    encoded, units, calendar = _encode_time(draft.time)
    group = zarr.create_group(path, attributes={**_plain(dataset.attrs), "variables": list(draft.variables)})

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
            # One flat folder of chunk files, each at its plain name; a chunk of nothing but missing values is
            # written, too.
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
    fields = create(
        "fields",
        shape,
        (1, *shape[1:]),
        ("time", "variable", "latitude", "longitude"),
        dtype="float32",
        fill_value=float("nan"),
        attributes={str(name): _plain(array.attrs) for name, array in dataset.data_vars.items()},
    )
    block = max(1, BLOCK_BYTES // (4 * int(np.prod(shape[1:]))))
    for first in range(0, shape[0], block):
        last = min(first + block, shape[0])
        fields[first:last] = Window.from_dataset(dataset.isel(time=slice(first, last))).fields
        if progress is not None:
            progress(last, shape[0])


def _write_manifest(folder: Path, draft: TrainingStore, provenance: dict[str, Any]) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, sha256(path)]
    manifest = {
        "format": FORMAT,
        "kind": "climafuse training store",
        "variables": draft.variables,
        "shape": [len(draft.time), len(draft.variables), len(draft.latitude), len(draft.longitude)],
        "calendar": _encode_time(draft.time)[2],
        "splits": {name: _ranges(getattr(draft.splits, name)) for name in (*SPLIT_NAMES, "dropped")},
        "pairs": {name: len(draft.pairs(name)) for name in SPLIT_NAMES} if draft.all_pairs else None,
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
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _altered(path) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(
            str(path),
            expected=f"a training store of format {FORMAT}",
            received=f"format {manifest.get('format')}" if isinstance(manifest, dict) else "something else",
            remedy="Make the store again with this version of climafuse.",
        )
    if manifest.get("digest") != _digest(manifest):
        raise _altered(path)
    return manifest


def _check_files(folder: Path, manifest: dict[str, Any], *, content: bool) -> None:
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
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
            raise _altered(path)


def _altered(path: Path) -> StoreError:
    return StoreError(
        str(path),
        expected="the content it was written with",
        received="altered content",
        remedy="Copy or make the store again.",
    )


def _digest(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _ranges(indices: np.ndarray) -> list[list[int]]:
    """Ascending indices as ranges [first, end): a million steps of a block take one line."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(indices, breaks) if len(run)]


def _indices(ranges: list[list[int]]) -> np.ndarray:
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


def _plain(attributes: Any) -> dict[str, Any]:
    """Attributes as JSON: numbers and text; arrays as lists."""
    plain = {}
    for name, value in dict(attributes).items():
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        finite = not isinstance(value, float) or np.isfinite(value)  # JSON has no NaN
        plain[str(name)] = value if finite and isinstance(value, str | int | float | list) else str(value)
    return plain


def _provenance(source: Any, dataset: xr.Dataset) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "sources": _describe_sources(source),
        "attributes": _plain(dataset.attrs),  # license, institution, history, as the source states them
        "variables": {str(name): _plain(array.attrs) for name, array in dataset.data_vars.items()},
        "versions": versions,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _describe_sources(source: Any) -> list[dict[str, Any]]:
    """Files of a source with size, time of change and, up to a limit, SHA-256."""
    patterns = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(patterns, list | tuple):
        return [{"name": type(source).__name__}]  # a dataset in memory
    described: list[dict[str, Any]] = []
    for pattern in map(str, patterns):
        names = sorted(glob.glob(pattern)) or [pattern]
        for name in names:
            files = sorted(path for path in Path(name).rglob("*") if path.is_file()) or [Path(name)]
            if not all(path.is_file() for path in files):
                described.append({"name": name})  # a URI
                continue
            size = sum(path.stat().st_size for path in files)
            changed = max(path.stat().st_mtime for path in files)
            described.append(
                {
                    "name": name,
                    "files": len(files),
                    "bytes": size,
                    "changed": datetime.datetime.fromtimestamp(changed, datetime.UTC).isoformat(
                        timespec="seconds"
                    ),
                    "sha256": _digest_of(files, Path(name)) if size <= HASHED_BYTES else None,
                }
            )
    return described


def _digest_of(files: list[Path], root: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and SHA-256 of its files."""
    if files == [root]:
        return sha256(root)
    lines = "".join(f"{sha256(path)}  {path.relative_to(root).as_posix()}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()
