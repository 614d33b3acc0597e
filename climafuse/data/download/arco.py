"""ARCO-ERA5 and WeatherBench 2: public Zarr stores, read chunk by chunk and kept as NetCDF.

The stores are opened without an account, through `open_climate`, so the files hold canonical names and units. A file
takes whole chunks of time, so that no chunk is read twice; a chunk holds the whole globe, and all levels where there
are levels, so a small box costs as much to read as the globe. Reads are tried again when they fail or stall. A chunk
that the store does not hold would read as missing values; it is refused.

Reference: Carver and Merose 2023, ARCO-ERA5, https://github.com/google-research/arco-era5; Rasp et al. 2024,
WeatherBench 2, doi:10.1029/2023MS004019.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import Store
from zarr.storage import WrapperStore

from climafuse.data.download.access import public_url
from climafuse.data.download.plan import Part, Plan, digest
from climafuse.data.download.request import Days, check_hours, require, stored_variables
from climafuse.data.download.transfer import Attempts, Policy, Progress, Transient, check_room
from climafuse.data.files import whole_file
from climafuse.data.sources import _open_zarr, load_fields, open_climate
from climafuse.data.variables import Variable, match_variable
from climafuse.data.window import Box, Grid
from climafuse.errors import ClimateFileError, DownloadError, OutOfRangeError, UsageError

if TYPE_CHECKING:
    import xarray as xr
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

logger = logging.getLogger(__name__)

SERVICE = "ARCO-ERA5"
STORE = "gs://gcp-public-data-arco-era5/ar/full_37-1h-0p25deg-chunk-1.zarr-v3"
FILE_BYTES = 128 << 20  # of fields in one file
FILE_READS = (
    4 << 30
)  # bytes of chunks read for one file, before compression: what an interruption costs at most
READ_BYTES = 512 << 20  # of chunks in memory at once, before compression
SLOWEST = 100_000  # bytes a second of one chunk among several; a slower one has stalled
OVERHEAD = 64 << 10  # bytes of a NetCDF file beside its fields, at most
# Keys of chunks: "2m_temperature/0.0.0" in Zarr 2, "2m_temperature/c/0/0/0" in Zarr 3.
_CHUNK = re.compile(r"(?:^|/)(?:c/)?\d+(?:[./]\d+)*$")


def plan_arco(
    folder: str | Path,
    *,
    variables: Sequence[str],
    start: str | date,
    end: str | date,
    hours: Sequence[int] | None = None,
    box: Box | None = None,
    store: str = STORE,
    policy: Policy | None = None,
    file_bytes: int = FILE_BYTES,
) -> Plan:
    """Find what must be read of a public Zarr store for variables on some days. Reads its metadata only.

    Args:
        folder: Where the files go.
        variables: Canonical names; "t850" takes one level of "t".
        start: First day.
        end: Last day, included.
        hours: Hours of the day, UTC; every time of the store where None.
        box: What to cut out; None for the globe.
        store: URI or folder of the store: ARCO-ERA5, a store of WeatherBench 2, or one in their layout.
        policy: How patient to be with the store while planning.
        file_bytes: Bytes of fields in one file, at most, where a chunk of time is not larger.

    Returns:
        The plan. Its notes tell how many chunks are read and how many bytes they hold before compression.

    Raises:
        OutOfRangeError: The store does not reach these days, or the box holds no cell.
        VariableNotFoundError: The store does not hold a variable.
        DownloadError: The store cannot be read.
        UsageError: The request makes no sense, or a package is missing.
    """
    days, chosen = Days.of(start, end), None if hours is None else check_hours(hours)
    wanted = stored_variables(variables)
    source = _Source(store, wanted, policy or Policy())
    steps = source.steps(days, chosen)
    rows, columns = Grid(source.fields["latitude"].values, source.fields["longitude"].values).locate(box)
    # Ascending, as canonical longitudes are: a box over Greenwich is stored with its gap in the middle.
    picks = np.sort(np.concatenate([np.arange(piece.start, piece.stop) for piece in columns]))
    reading = source.reading(steps, rows, picks)

    one = (
        4
        * sum(math.prod(source.fields[variable.name].shape[1:-2]) for variable in wanted)
        * (rows.stop - rows.start)
        * len(picks)
    )  # bytes of a time
    chunk_ids = steps // reading.times_in_chunk
    # Of each chunk, or of the chunks, so many times are wanted; the same for any range of days, so that files keep
    # their names when the range grows.
    wanted_in_chunk = reading.times_in_chunk * len(steps) / len(source.steps(days, None))
    read_for_chunk = reading.num_bytes / len(np.unique(chunk_ids))
    per_file = min(file_bytes / (one * max(1.0, wanted_in_chunk)), FILE_READS / read_for_chunk)
    ids_in_file = max(1, int(max(1.0, per_file) / min(1.0, wanted_in_chunk)))
    name = digest(
        store=public_name(store),
        variables=[variable.name for variable in wanted],
        hours=chosen,
        box=None if box is None else [box.latitude, box.longitude, box.height, box.width],
    )
    parts = []
    for group in np.unique(chunk_ids // ids_in_file):
        some = steps[chunk_ids // ids_in_file == group]
        first, last = (
            str(np.datetime_as_string(source.times[step], unit="m")) for step in (some[0], some[-1])
        )
        span = "-".join(dict.fromkeys(re.sub(r"[-:]", "", text) for text in (first, last)))
        parts.append(
            Part(
                f"arco_{span}_{name}.nc",
                {
                    "store": public_name(store),
                    "variables": [variable.name for variable in wanted],
                    "times": [first, last],
                    "number_of_times": len(some),
                },
                partial(source.bring, some, rows, picks, reading),
                size=one * len(some) + OVERHEAD,
            )
        )
    notes = {
        "store": public_name(store),
        "times": len(steps),
        "chunks": reading.num_chunks,
        "chunk_bytes": reading.num_bytes,
    }
    return Plan("arco", Path(folder), tuple(parts), notes)


@dataclass(frozen=True)
class _Reading:
    """What must be read for a selection.

    Args:
        num_chunks: Chunks.
        num_bytes: What they hold before compression.
        times_in_chunk: The most times that a chunk of any of the variables holds.
    """

    num_chunks: int
    num_bytes: int
    times_in_chunk: int

    @property
    def bytes_of_a_chunk(self) -> int:
        """Bytes of a chunk before compression, on average."""
        return max(1, self.num_bytes // max(1, self.num_chunks))


class _Source:
    """A store, opened as stored and as canonical fields."""

    def __init__(self, store: str, variables: Sequence[Variable], policy: Policy) -> None:
        self.store = public_name(store)
        self.patient = _PatientStore(_open_store(store), policy, self.store)
        try:
            self.stored = _open_zarr(self.patient, self.store)
        except ClimateFileError:  # what zarr says of it holds the whole URI
            raise DownloadError(
                self.store,
                expected="a Zarr store that can be read without an account",
                received="none, or a broken one",
                remedy="Check the URI; it must be that of the group itself.",
            ) from None
        self.stored.attrs.setdefault("climate_source", self.store)
        self.variables = variables
        self.fields = open_climate(self.stored, variables=[variable.name for variable in variables])
        self.times = self.fields["time"].values
        if self.times.dtype == object:
            raise DownloadError(
                self.store,
                expected="times of the Gregorian calendar",
                received="another calendar",
                remedy="Open the store with open_climate instead.",
            )

    def steps(self, days: Days, hours: Sequence[int] | None) -> np.ndarray:
        """Where the times of some days lie on the time axis."""
        first, end = np.datetime64(days.first, "s"), np.datetime64(days.last, "s") + np.timedelta64(1, "D")
        chosen = (self.times >= first) & (self.times < end)
        if hours is not None:
            hour = (self.times - self.times.astype("datetime64[D]")).astype("timedelta64[s]").astype(int)
            chosen &= np.isin(hour, [3600 * value for value in hours])
        steps = np.flatnonzero(chosen)
        # The axis of ARCO-ERA5 runs to 2050; these attributes tell how far it is filled.
        span = [
            self.stored.attrs.get(f"valid_time_{which}", str(edge)[:10])
            for which, edge in (("start", self.times[0]), ("stop", self.times[-1]))
        ]
        inside = np.datetime64(str(span[0]), "D") <= days.first and days.last <= np.datetime64(
            str(span[1]), "D"
        )
        if not inside or len(steps) == 0:
            raise OutOfRangeError(
                f"days of {self.store}",
                expected=f"days from {span[0]} to {span[1]}, at hours that it holds",
                received=f"{days.first} to {days.last}",
                remedy="Choose other days or hours.",
            )
        return steps

    def reading(self, steps: np.ndarray, rows: slice, columns: np.ndarray) -> _Reading:
        """Which chunks a selection touches."""
        num_chunks, num_bytes, times_in_chunk, largest = 0, 0, 1, 0
        for array in self.stored.data_vars.values():
            on_levels = "level" in array.dims
            match = match_variable(str(array.name), array.attrs, has_level=on_levels)
            asked = [v for v in self.variables if match and match.name in (v.name, v.parent)]
            if not asked:
                continue
            touched = 1
            chunks = array.encoding.get("chunks") or array.shape
            for dimension, length in zip(array.dims, chunks, strict=True):
                positions = self._positions(str(dimension), asked, steps, rows, columns)
                touched *= len(np.unique(positions // length))
                if dimension == "time":
                    times_in_chunk = max(times_in_chunk, length)
            size = math.prod(chunks) * array.dtype.itemsize
            num_chunks, num_bytes, largest = (
                num_chunks + touched,
                num_bytes + touched * size,
                max(largest, size),
            )
        self.patient.chunk_bytes = largest
        return _Reading(num_chunks, num_bytes, times_in_chunk)

    def _positions(
        self, dimension: str, asked: Sequence[Variable], steps: np.ndarray, rows: slice, columns: np.ndarray
    ) -> np.ndarray:
        """Where the selection lies along a stored dimension."""
        if dimension == "time":
            return steps
        stored = np.asarray(self.stored[dimension].values, dtype=float)
        if dimension == "level":
            levels = [variable.level for variable in asked if variable.level is not None]
            all_of_them = len(levels) < len(asked)
            return np.arange(len(stored)) if all_of_them else np.flatnonzero(np.isin(stored, levels))
        order = np.argsort(stored % 360.0 if dimension == "longitude" else stored, kind="stable")
        return order[rows if dimension == "latitude" else columns]

    def bring(
        self,
        steps: np.ndarray,
        rows: slice,
        columns: np.ndarray,
        reading: _Reading,
        path: Path,
        policy: Policy,
        progress: Progress,
    ) -> None:
        """Read a selection and write it as NetCDF."""
        import xarray as xr

        self.patient.policy = policy
        selected = self.fields.isel(time=steps, latitude=rows, longitude=columns)
        # Whole chunks of time at once, so that none is read twice.
        chunk_ids = steps // reading.times_in_chunk
        at_once = max(1, READ_BYTES // reading.bytes_of_a_chunk)
        ends = np.searchsorted(chunk_ids, np.unique(chunk_ids)[at_once - 1 :: at_once], side="right")
        attempts = Attempts(policy, path.name)
        pieces: list[xr.Dataset] = []
        done = 0
        for end in [*ends.tolist(), len(steps)]:
            while done < end:
                try:
                    pieces.append(load_fields(selected.isel(time=slice(done, end))))
                except ClimateFileError:  # a chunk as long as it should be, and yet not what was stored
                    attempts.failed(Transient("a chunk that cannot be decoded"), done)
                    continue
                done = end
                progress(selected.nbytes * done // len(steps), selected.nbytes)
        loaded = xr.concat(pieces, "time") if len(pieces) > 1 else pieces[0]
        loaded.attrs = {"Conventions": "CF-1.7", "source": self.store}
        loaded["time"].encoding = {"units": "seconds since 1970-01-01", "dtype": "int64"}
        check_room(path.parent, loaded.nbytes + OVERHEAD)
        with whole_file(path) as temporary:
            loaded.to_netcdf(temporary, engine="netcdf4")


def _open_store(store: str) -> Store:
    """The store, without an account."""
    from zarr.storage import FsspecStore, LocalStore

    protocol, separator, _ = store.partition("://")
    if not separator:
        return LocalStore(store, read_only=True)
    if protocol in ("gs", "gcs"):
        require("gcsfs", extra="arco", service=SERVICE)
    anonymous: dict[str, dict[str, Any]] = {
        "gs": {"token": "anon"},
        "gcs": {"token": "anon"},
        "s3": {"anon": True},
    }
    try:
        return FsspecStore.from_url(store, storage_options=anonymous.get(protocol), read_only=True)
    except (ImportError, ValueError) as error:
        raise UsageError(
            public_name(store),
            expected="a folder, or a URI whose protocol can be read here",
            received=str(error),
            remedy="Install the package it names, or `pip install 'climafuse[arco]'`.",
        ) from error


class _PatientStore(WrapperStore[Store]):
    """A store whose reads are tried again when they fail or stall, and which holds every chunk or says so."""

    def __init__(self, store: Store, policy: Policy | None = None, name: str = "") -> None:
        super().__init__(store)
        self.policy, self.name, self.chunk_bytes = policy or Policy(), name, 0

    def _with_store(self, store: Store) -> _PatientStore:
        copied = type(self)(store, self.policy, self.name)
        copied.chunk_bytes = self.chunk_bytes
        return copied

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key, as the wrapped store does."""
        failures = 0
        while True:
            try:
                # Whether bytes arrive cannot be seen from here, so a chunk has time by its size.
                allowed = self.policy.stall + self.chunk_bytes / SLOWEST
                value = await asyncio.wait_for(self._store.get(key, prototype, byte_range), allowed)
                break
            except (
                Exception
            ) as error:  # of fsspec, aiohttp, gcsfs and others: no common base tells what may pass
                failures += 1
                refused = isinstance(error, PermissionError) or _status(error) in (401, 403)
                if refused or failures >= self.policy.attempts:
                    raise self._unreadable(key, error, failures) from None
                logger.info("%s: %s; trying again", key, _reason(error))
                await asyncio.sleep(self.policy.wait(failures))
        if value is None and _CHUNK.search(key):
            raise DownloadError(
                f"{self.name}, {key}",
                expected="a chunk",
                received="none: the store has not been filled there, or has lost it",
                remedy="Choose other days: read as it is, it would be missing values.",
            )
        return value

    def _unreadable(self, key: str, error: Exception, failures: int) -> DownloadError:
        return DownloadError(
            f"{self.name}, {key}",
            expected="a store that can be read without an account",
            received=f"{_reason(error)}, {failures} times in a row",
            remedy="Run the same command again later: it goes on from the files that are there.",
        )


def _status(error: Exception) -> int | None:
    """Status of an HTTP error, of aiohttp or gcsfs."""
    for name in ("status", "code"):
        if isinstance(found := getattr(error, name, None), int):
            return found
    return None


def _reason(error: Exception) -> str:
    """What went wrong, in a few words; texts of these libraries hold whole URLs."""
    if isinstance(error, TimeoutError):
        return "nothing arrived in time"
    status = _status(error)
    return f"status {status}" if status else type(error).__name__


def public_name(store: str) -> str:
    """A store as it is told: a URL without what may be signed into it."""
    return public_url(store) if store.startswith(("http://", "https://")) else store
