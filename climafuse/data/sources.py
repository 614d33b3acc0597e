"""Open climate files: NetCDF, Zarr and GRIB of any product -> one lazy, canonical dataset.

Threads and processes: the NetCDF and HDF5 libraries are not thread-safe. Every read goes through xarray,
which holds its locks for them, so threads are safe but wait for each other. An open file must not cross a
fork: open it in each worker, or send the dataset by pickle, which opens it again.
"""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import xarray as xr
import zarr
from zarr.abc.store import Store

from climafuse.data.canonical import available_variables, canonicalize, select_variables
from climafuse.data.grib import open_grib
from climafuse.data.hdf5_heap import check_heaps
from climafuse.data.lazy import broken, inside_library, reading
from climafuse.data.netcdf_classic import expected_size
from climafuse.data.remote import ZARR_METADATA, find_uris, is_uri, is_zarr, local_copy
from climafuse.data.zarr_store import ConfinedStore, bounded_chunks, check_chunks, check_codecs
from climafuse.errors import ClimateFileError, UsageError

__all__ = ["ClimateSource", "available_variables", "load_fields", "open_climate", "select_variables"]

ClimateSource: TypeAlias = str | Path | Sequence[str | Path] | xr.Dataset

_NETCDF_CLASSIC, _HDF5, _GRIB = b"CDF", b"\x89HDF\r\n\x1a\n", b"GRIB"
# First bytes of what is often found under the name of a climate file, and what to do about it.
_OTHER_FORMATS = {
    b"PK\x03\x04": (
        "a zip archive",
        "Unzip it; the Climate Data Store delivers several files in one archive.",
    ),
    b"\x1f\x8b": ("a gzip archive", "Unpack it with gunzip."),
    b"{": (
        "JSON",
        "If it lists virtual references (kerchunk), open the files it leads to.",
    ),
    b"<": ("a web page or XML", "Download it again; an expired login delivers a web page instead of data."),
}


def open_climate(source: ClimateSource, *, variables: Sequence[str] | None = None) -> xr.Dataset:
    """Open climate fields as a lazy canonical dataset.

    Args:
        source: A NetCDF or GRIB file or Zarr directory, by path or URI (``data/remote.py``); a glob pattern or
            several files, joined along time and across variables; or an xarray dataset.
        variables: What to open, by canonical name or that of a product; channels such as "t850" and derived
            variables such as "ws10" included. None opens every variable of the table that the files hold.

    Returns:
        Dimensions time, [level], latitude, longitude in this order; latitude ascending, longitude ascending
        in [0, 360), level in hPa; float32 in SI units with NaN where missing; canonical names. The attribute
        ``climate_source`` names the files, ``ignored_variables`` the fields they hold besides. Values are
        read on use and not kept.

    Raises:
        ClimateFileError: A file is missing, truncated, or no climate file.
        VariableNotFoundError: A variable is absent; the message lists those there.
        CanonicalizationError: Something cannot be made canonical without a guess.
    """
    if isinstance(source, xr.Dataset):
        return canonicalize([(str(source.attrs.get("climate_source", "dataset")), source)], variables)
    opened: list[tuple[str, xr.Dataset]] = []
    try:
        for path in _paths(source):
            opened += [(path, dataset) for dataset in _open(path)]
        dataset = canonicalize(opened, variables)
    except BaseException:
        _close(opened)
        raise
    dataset.set_close(partial(_close, opened))
    return dataset


def _close(opened: Sequence[tuple[str, xr.Dataset]]) -> None:
    for _, dataset in opened:
        dataset.close()


def load_fields(dataset: xr.Dataset) -> xr.Dataset:
    """Read a lazy dataset into memory.

    Args:
        dataset: As selected from an opened one; the smaller, the less is read.

    Returns:
        A copy with the values in memory.

    Raises:
        ClimateFileError: A file proves broken on reading.
    """
    with reading(str(dataset.attrs.get("climate_source", "dataset"))):
        return dataset.compute()


def _paths(source: str | Path | Sequence[str | Path]) -> list[str]:
    """Files in the order given, patterns expanded in alphabetical order."""
    if isinstance(source, xr.DataArray) or not isinstance(source, str | Path | Iterable):
        raise UsageError(
            "source",
            expected="a path, a URI, a pattern, several of them, or an xarray.Dataset",
            received=f"a {type(source).__name__}",
            remedy="Make a Dataset of a DataArray with its method to_dataset.",
        )
    places = [str(source)] if isinstance(source, str | Path) else [str(place) for place in source]
    paths = []
    for place in places:
        if is_uri(place):
            paths += find_uris(place)
            continue
        pattern = glob.has_magic(place) and not os.path.exists(place)
        found = sorted(glob.glob(str(Path(place).expanduser()))) if pattern else [place]
        if not found:
            raise ClimateFileError(
                place,
                expected="a pattern that matches files",
                received="no file that matches",
                remedy="Check the path and the pattern.",
            )
        paths += found
    if not all(paths):  # an empty text would be the current folder
        paths = []
    if not paths:
        raise ClimateFileError("source", expected="at least one file", received="none", remedy="Name a file.")
    return paths


def _open(path: str) -> list[xr.Dataset]:
    """A file as stored: nothing decoded; in GRIB, several datasets."""
    if is_uri(path):
        return [_open_zarr(path, path)] if is_zarr(path) else _open_file(local_copy(path), path)
    local = Path(path).expanduser()
    if not os.path.exists(local):  # False, too, for what can be no path
        raise ClimateFileError(
            path,
            expected="a NetCDF file or Zarr directory",
            received="no such file",
            remedy="Check the path.",
        )
    if not local.is_dir() and not local.is_file():
        raise ClimateFileError(
            path,
            expected="a NetCDF file or Zarr directory",
            received="a device, pipe or socket",
            remedy="Write what it delivers to a file first.",
        )
    if not local.is_dir():
        return _open_file(local, path)
    if not any((local / name).exists() for name in ZARR_METADATA):
        raise ClimateFileError(
            path,
            expected="a NetCDF file or Zarr directory",
            received="a directory without Zarr metadata (zarr.json or .zgroup)",
            remedy="Give the Zarr group itself, or a pattern such as 'directory/*.nc' for several files.",
        )
    return [_open_zarr(ConfinedStore(local, read_only=True), path)]


def _open_file(local: Path, where: str) -> list[xr.Dataset]:
    with inside_library(where), local.open("rb") as file:
        start = file.read(8)
    if start.startswith(_GRIB):
        return open_grib(local, where)
    _check_format(start, where)
    return [_open_netcdf(local, start, where)]


def _open_netcdf(local: Path, start: bytes, where: str) -> xr.Dataset:
    with _parsing(where):
        if start.startswith(_NETCDF_CLASSIC):
            promised, size = expected_size(local), local.stat().st_size
            if size < promised:
                raise broken(where, f"{size} of {promised} bytes")
        else:
            check_heaps(local)
        return xr.open_dataset(local, engine="netcdf4", decode_cf=False, cache=False)


@contextmanager
def _parsing(where: str) -> Iterator[None]:
    with inside_library(where), warnings.catch_warnings():
        # xarray goes on, and warns that most of what it does then "is likely to fail silently".
        warnings.filterwarnings("error", message="Duplicate dimension names", category=UserWarning)
        yield


def _check_format(start: bytes, where: str) -> None:
    if start.startswith((_NETCDF_CLASSIC, _HDF5)):
        return
    found = [other for magic, other in _OTHER_FORMATS.items() if start.lstrip().startswith(magic)]
    received, remedy = (
        found[0] if found else ("another kind of file", "Give a NetCDF or GRIB file or a Zarr directory.")
    )
    raise ClimateFileError(
        where,
        expected="NetCDF (versions 3 and 4), GRIB or a Zarr directory",
        received=received if start else "an empty file",
        remedy=remedy if start else "Download or write it again.",
    )


def _open_zarr(store: str | Store, where: str) -> xr.Dataset:
    with _parsing(where), bounded_chunks():
        # A note or checksum file beside the arrays is nobody's fault; without consolidated metadata zarr
        # lists the directory and warns of it.
        warnings.filterwarnings("ignore", message="Object at .* is not recognized", category=UserWarning)
        # Whether metadata are consolidated is asked first: xarray warns when it has to find out by failing.
        consolidated = zarr.open_group(store, mode="r").metadata.consolidated_metadata is not None
        dataset = xr.open_dataset(
            store,  # type: ignore[arg-type]  # xarray takes stores of zarr, too
            engine="zarr",
            consolidated=consolidated,
            decode_cf=False,
            cache=False,
            chunks=None,
            create_default_indexes=False,  # their values would be read at once
        )
        check_codecs(dataset, where=where)
        check_chunks(dataset, where=where)
        for variable in dataset.variables.values():
            # In Zarr 2, 0 is the fill value of an array that was given none: zeros are values there.
            if variable.dtype.kind == "f" and variable.attrs.get("_FillValue") == 0:
                del variable.attrs["_FillValue"]
        return dataset
