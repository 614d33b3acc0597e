"""Fields that are read on use: picked, put in order, unpacked and converted when somebody asks for values.

A ``StoredField`` is one variable in one file and knows where its canonical values lie. A ``LazyField`` is the
same variable over all files, as an array that xarray can index. Every read of climate files goes through
here: a file that proves broken only then raises ``ClimateFileError``, whoever reads.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from climafuse.data.coords import Axis
from climafuse.data.packing import Packing
from climafuse.data.times import format_time
from climafuse.errors import CanonicalizationError, ClimafuseError, ClimateFileError

# MERRA-2 fills with 1e15, NetCDF by default with 9.97e36, and both lose the attribute that says so on their
# way through other tools. No variable of the table comes near in any unit it is understood in.
FILL_THRESHOLD = 1e14

# What the libraries raise when a file ends or breaks in the middle: netCDF4 RuntimeError and OSError, codecs
# of Zarr RuntimeError, ValueError, EOFError and zlib.error; any of them MemoryError at a shape of terabytes.
_READ_ERRORS = (OSError, RuntimeError, ValueError, EOFError, zlib.error, MemoryError)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn errors of the file libraries into ours; our own pass."""
    # Behind a URI, libraries of protocols raise errors of their own on top, each its own kind.
    errors = (Exception,) if "://" in where else _READ_ERRORS
    try:
        yield
    except (ImportError, ClimafuseError):
        raise
    except errors as error:
        raise _because(where, error) from error


@contextmanager
def inside_library(where: str) -> Iterator[None]:
    """As `reading`, around calls of the file libraries alone.

    Whatever they raise then is about the file: broken metadata of Zarr end in any kind of exception. A package
    that is not installed is not.
    """
    try:
        yield
    except (ImportError, ClimafuseError):
        raise
    except Exception as error:
        raise _because(where, error) from error


def _because(where: str, error: Exception) -> ClimateFileError:
    return broken(where, str(error).splitlines()[0] if str(error).strip() else type(error).__name__)


def broken(where: str, reason: str) -> ClimateFileError:
    """The error of a file that cannot be read."""
    return ClimateFileError(
        where,
        expected="a complete NetCDF file or Zarr store",
        received=f"a file that cannot be read ({reason})",
        remedy="Check the connection, and whether you may read it; it may also be damaged."
        if "://" in where
        else "It may be truncated or damaged: download or write it again.",
    )


@dataclass(frozen=True, eq=False)
class StoredField:
    """One variable in one file, and how its values become canonical.

    Args:
        variable: As stored, lazy.
        axes: Time, [level], latitude, longitude.
        attributes: Canonical attributes.
        packing: What the stored numbers mean.
        scale: SI value = scale · stored number + offset.
        offset: See ``scale``.
        possible: Smallest and largest SI value that the quantity can have.
        where: File and variable, for errors.
    """

    variable: xr.Variable
    axes: tuple[Axis, ...]
    attributes: dict[str, Any]
    packing: Packing
    scale: float
    offset: float
    possible: tuple[float, float]
    where: str

    def read(self, steps: slice, picks: Sequence[np.ndarray]) -> np.ndarray:
        """Canonical values.

        Args:
            steps: Stored time steps, in their stored order.
            picks: For each further axis the canonical indices wanted.

        Returns:
            [steps, *lengths of picks] float32.

        Raises:
            ClimateFileError: The file breaks off.
            CanonicalizationError: Two columns of one meridian differ, or a value is impossible.
        """
        time, *space = self.axes
        indexers: dict[Hashable, Any] = dict.fromkeys(self.variable.dims, 0)  # what is no axis has length 1
        if time.dimension is not None:
            indexers[time.dimension] = steps
        takes: list[np.ndarray] = []  # per spatial axis: where its values lie within the block that is read
        twins: list[tuple[int, int]] = []  # columns of the result and of the block that must be equal
        for axis, pick in zip(space, picks, strict=True):
            positions = axis.positions[pick]
            for kept, left_out in axis.twins:
                if kept in positions:
                    twins.append((int(np.flatnonzero(positions == kept)[0]), len(positions)))
                    positions = np.append(positions, left_out)
            # One contiguous block, put in order in memory: file libraries are slow at anything else.
            start = int(positions.min())
            if axis.dimension is not None:
                indexers[axis.dimension] = slice(start, int(positions.max()) + 1)
            takes.append(positions - start)
        with inside_library(self.where):
            block = self.variable.isel(indexers)
            dims = [axis.dimension for axis in self.axes if axis.dimension is not None]
            values = block.transpose(*dims).values
        absent = [index for index, axis in enumerate(self.axes) if axis.dimension is None]
        values = self._decode(np.expand_dims(values, absent))
        self._refuse_impossible(values, steps)
        for number, take in enumerate(takes, start=1):
            values = np.take(values, take, axis=number)
        for column, copy in twins:
            if not np.array_equal(values[..., column], values[..., copy], equal_nan=True):
                raise CanonicalizationError(
                    self.where,
                    expected="equal values in the two columns of one meridian (such as 0 and 360 degrees)",
                    received="different values",
                    remedy="Remove the column that is wrong.",
                )
        return values[..., : len(picks[-1])]

    def _refuse_impossible(self, values: np.ndarray, steps: slice) -> None:
        """Refuse infinities and values that no field of the quantity has.

        They may be a fault, or somebody's undeclared code for missing values: which, only its maker knows.
        """
        low, high = self.possible
        with np.errstate(invalid="ignore"):
            impossible = (values < low) | (values > high)  # NaN is neither
        if not impossible.any():
            return
        first = int(np.argwhere(impossible)[0][0])
        time = self.axes[0]
        at = (
            int(np.flatnonzero(time.positions == steps.start + first)[0]) if time.dimension is not None else 0
        )
        found = values[first][impossible[first]]
        kind = (
            "infinite values" if np.isinf(found).all() else f"values such as {found[np.isfinite(found)][0]:g}"
        )
        raise CanonicalizationError(
            f"{self.where} at {format_time(time.values[at])}",
            expected=f"values from {low:g} to {high:g} {self.attributes['units']}, and NaN or the declared fill value "
            "where there are none",
            received=f"{len(found)} {kind}",
            remedy="If they stand for missing values, write NaN in their places, or declare them in the attribute "
            "_FillValue.",
        )

    def _decode(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers -> float32 in SI units, NaN where missing."""
        if stored.dtype.kind in "iu":
            stored = stored.astype(self.packing.numbers, copy=False)
        missing = np.zeros(stored.shape, dtype=bool)
        for fill in self.packing.fills:
            missing |= stored == fill
        if stored.dtype.kind == "f":
            missing |= np.isfinite(stored) & (np.abs(stored) >= FILL_THRESHOLD)
        low, high = self.packing.limits
        if (low, high) != (-np.inf, np.inf):
            # An infinity is no missing value but a fault, and refused by whoever reads on.
            outside = np.isfinite(stored) & ((stored < low) | (stored > high)) & ~missing
            if self.packing.doubtful and outside.any():
                raise CanonicalizationError(
                    self.where,
                    expected="limits in fractions, like the values, or the scale_factor that they were packed with",
                    received=f"{self.packing.doubtful}, and values such as {stored[outside][0]:g} outside",
                    remedy="Remove the limits if they are those of packed integers that were unpacked since; if "
                    "they are those of the values, write them in the type of these.",
                )
            missing |= outside
        with np.errstate(over="ignore", invalid="ignore"):  # fill values may not fit
            if (self.scale, self.offset) == (1.0, 0.0):
                values = stored.astype(np.float32)
            else:
                # In double precision and rounded once: packed and plain files of the same field then agree.
                values = (stored.astype(np.float64) * self.scale + self.offset).astype(np.float32)
        values[missing] = np.nan
        return values


class LazyArray(BackendArray):
    """An array that xarray reads by index."""

    shape: tuple[int, ...]

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Values at an xarray index."""
        if isinstance(key, indexing.VectorizedIndexer):
            return indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER, self._read
            )
        # Directly: the adapter fails at empty slices with a negative step (xarray 2026.9).
        return self._read(key.tuple)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Values at one integer, slice or integer array for each dimension, independent of each other."""
        raise NotImplementedError


class LazyField(LazyArray):
    """One canonical variable over all files, read on use: the array behind a canonical dataset.

    Args:
        fields: The variable in each file that holds it; spatial axes equal.
        owner: [T] which of the fields holds each canonical time.
        step: [T] which stored time step of it.
    """

    def __init__(self, fields: Sequence[StoredField], owner: np.ndarray, step: np.ndarray) -> None:
        self.fields = fields
        self.owner = owner
        self.step = step
        self.shape = (len(owner), *(len(axis.values) for axis in fields[0].axes[1:]))
        self.dtype = np.dtype(np.float32)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        picks = [np.atleast_1d(np.arange(size)[k]) for size, k in zip(self.shape, key, strict=True)]
        values = np.empty([len(pick) for pick in picks], dtype=np.float32)  # [T, (level), H, W]
        if values.size:
            owner, step = self.owner[picks[0]], self.step[picks[0]]
            # Steps that follow each other in one file are read in one piece.
            breaks = np.flatnonzero((np.diff(owner) != 0) | (np.diff(step) != 1)) + 1
            for run in np.split(np.arange(len(step)), breaks):
                steps = slice(int(step[run[0]]), int(step[run[-1]]) + 1)
                values[run[0] : run[-1] + 1] = self.fields[owner[run[0]]].read(steps, picks[1:])
        return values[tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key)]

    def check_twins(self) -> None:
        """Compare the two columns of one meridian at the first time: reading does it at every time."""
        self._read((0, *(slice(None) for _ in self.shape[1:])))


class DerivedField(LazyArray):
    """A variable computed from others on use, cell by cell."""

    def __init__(self, function: Callable[..., np.ndarray], inputs: Sequence[xr.Variable]) -> None:
        self.function = function
        self.inputs = inputs
        self.shape = inputs[0].shape
        self.dtype = np.dtype(np.float32)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        picked = [
            variable.isel(dict(zip(variable.dims, key, strict=True))).values for variable in self.inputs
        ]
        return np.asarray(self.function(*picked), dtype=np.float32)
