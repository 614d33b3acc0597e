"""Where fields come from: files with size, time of change and hash, their attributes, and what read them."""

from __future__ import annotations

import datetime
import glob
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from climafuse.manifest import sha256, versions

if TYPE_CHECKING:
    import xarray as xr

HASHED_BYTES = 4 * 2**30  # a larger source is recorded by size and time of change only
READERS = ("numpy", "xarray", "zarr", "netCDF4")


def provenance(source: Any, dataset: xr.Dataset) -> dict[str, Any]:
    """All that is recorded of a source.

    Args:
        source: What `open_climate` opened.
        dataset: What it made of it.

    Returns:
        JSON values.
    """
    return {
        "sources": [_describe(name, files) for name, files in _files_of(source)],
        "attributes": plain(dataset.attrs),  # license, institution, history, as the source states them
        "variables": {str(name): plain(array.attrs) for name, array in dataset.data_vars.items()},
        "versions": versions(READERS),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def identity(source: Any) -> list[list[Any]]:
    """What tells a source from another without reading it: paths, sizes and times of change of its files.

    Args:
        source: What `open_climate` opens.

    Returns:
        For each name: the name, and where it stands for files, their number and a hash over all three.
    """
    found: list[list[Any]] = []
    for name, files in _files_of(source):
        lines = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in files]
        found.append([name, len(files), hashlib.sha256("".join(lines).encode()).hexdigest()])
    return found


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as JSON: numbers and text; arrays as lists."""
    found = {}
    for name, value in dict(attributes).items():
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        finite = not isinstance(value, float) or np.isfinite(value)  # JSON has no NaN
        found[str(name)] = value if finite and isinstance(value, str | int | float | list) else str(value)
    return found


def _files_of(source: Any) -> list[tuple[str, list[Path]]]:
    """Names that a source is made of, each with its files; without any for a URI or a dataset in memory."""
    patterns = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(patterns, list | tuple):
        return [(type(source).__name__, [])]
    found = []
    for pattern in map(str, patterns):
        for name in sorted(glob.glob(pattern)) or [pattern]:
            files = sorted(path for path in Path(name).rglob("*") if path.is_file()) or [Path(name)]
            found.append((name, files if all(path.is_file() for path in files) else []))
    return found


def _describe(name: str, files: list[Path]) -> dict[str, Any]:
    if not files:
        return {"name": name}
    changed = max(path.stat().st_mtime for path in files)
    return {
        "name": name,
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "changed": datetime.datetime.fromtimestamp(changed, datetime.UTC).isoformat(timespec="seconds"),
        "sha256": _digest_of(files, Path(name)),
    }


def _digest_of(files: list[Path], root: Path) -> str | None:
    """SHA-256 of a file; of a folder, over the names and SHA-256 of its files; None where it would take long."""
    if sum(path.stat().st_size for path in files) > HASHED_BYTES:
        return None
    if files == [root]:
        return sha256(root)
    lines = "".join(f"{sha256(path)}  {path.relative_to(root).as_posix()}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()
