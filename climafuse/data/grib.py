"""GRIB 1 and 2, through cfgrib and ecCodes (the extra ``grib``): one dataset for every kind of field in a file.

Fields of one GRIB file need not share anything: instants and sums, the surface and pressure levels come together. They
are given apart, by valid time, and joined like several files.

Nothing is left beside the file: the index that cfgrib makes lives in a folder of its own while files are opened.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from climafuse.data.lazy import broken, inside_library
from climafuse.errors import CanonicalizationError, ClimateFileError

# Of every message: which field it is, when it is valid, over which steps, and how many bytes it has.
_FIELD_KEYS = ("shortName", "typeOfLevel", "level:float", "number", "stepType", "valid_time")
_STEP_KEYS = ("startStep:int", "endStep:int")


def open_grib(local: Path, where: str) -> list[xr.Dataset]:
    """All fields of a GRIB file, as stored.

    Args:
        local: The file.
        where: What to call it in errors.

    Returns:
        A dataset for each variable, kind of level and kind of step; times not decoded.

    Raises:
        ClimateFileError: It is truncated or damaged, or cfgrib is not installed.
        CanonicalizationError: It holds two fields of one variable, level and time.
    """
    try:
        from cfgrib import cfmessage, messages
        from cfgrib.dataset import open_fileindex
        from cfgrib.xarray_store import open_variable_datasets
    except ImportError as error:
        raise ClimateFileError(
            where,
            expected="NetCDF or Zarr, or the packages that read GRIB",
            received=f"GRIB ({error})",
            remedy="To read it, pip install 'climafuse[grib]'; or convert it, as with `cdo -f nc4 copy`.",
        ) from error
    with inside_library(where), tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"indexpath": f"{folder}/{{short_hash}}.idx", "errors": "raise"}
        keys = (*_FIELD_KEYS, *_STEP_KEYS, "totalLength:int")
        index = open_fileindex(
            messages.FileStream(str(local), errors="raise"),
            indexpath=options["indexpath"],
            index_keys=keys,
            computed_keys=cfmessage.COMPUTED_KEYS,
        )
        found = [
            (dict(zip(index.index_keys, values, strict=True)), offset)
            for values, offsets in index.iter_index()
            for offset in offsets
        ]
        _check_whole(local, found, where)
        _check_unique([fields for fields, _ in found], where)
        datasets: list[xr.Dataset] = open_variable_datasets(
            str(local),
            backend_kwargs=options | {"time_dims": ("valid_time",)},
            decode_cf=False,
            cache=False,
        )
    for dataset in datasets:
        for variable in dataset.data_vars.values():
            _state_interval(variable, [fields for fields, _ in found])
    return datasets


def _check_whole(local: Path, found: Sequence[tuple[dict[str, Any], Any]], where: str) -> None:
    """Refuse a file that is more than its messages: ecCodes passes over what it cannot read without a word."""
    # Several fields may share a message; then the offset comes with a number.
    ends = {(o[0] if isinstance(o, tuple) else o): f["totalLength:int"] for f, o in found}
    reached = 0
    with local.open("rb") as file:
        for start, length in [*sorted(ends.items()), (local.stat().st_size, 0)]:
            file.seek(reached)
            between = file.read(start - reached)
            if between.strip(b"\0"):  # zeros may fill up a block
                raise broken(where, f"{len(between)} bytes from {reached} on are no GRIB message")
            reached = start + length


def _check_unique(fields: Sequence[dict[str, Any]], where: str) -> None:
    seen = set()
    for field in fields:
        key = tuple(field[name] for name in _FIELD_KEYS)
        if key in seen:
            time = np.datetime64(int(field["valid_time"]), "s")
            raise CanonicalizationError(
                f"{where}: variable {field['shortName']!r}",
                expected="one field for every level and valid time",
                received=f"several at {time}, from other initial times or steps",
                remedy="Choose one forecast, for example with grib_copy -w dataDate=…,dataTime=….",
            )
        seen.add(key)


def _state_interval(variable: xr.DataArray, fields: Sequence[dict[str, Any]]) -> None:
    """Say over how many hours a sum or mean goes; where that changes from field to field, it is no one variable."""
    step_type = variable.attrs.get("GRIB_stepType")
    if step_type in (None, "instant"):
        return
    own = [
        f for f in fields if (f["shortName"], f["stepType"]) == (variable.attrs["GRIB_shortName"], step_type)
    ]
    lengths = sorted({f["endStep:int"] - f["startStep:int"] for f in own})
    if len(lengths) > 1:
        variable.attrs["GRIB_stepType"] = f"{step_type} over {' or '.join(map(str, lengths))} hours"
    elif step_type == "accum" and variable.attrs.get("GRIB_stepUnits") == 1:
        variable.attrs["cell_methods"] = f"time: sum (interval: {lengths[0]} hour)"
