"""Data products x properties: whatever the product and however it is written, the same fields come out.

Every layout is written once, opened, and read into memory as stored. Hypothesis then draws a way to write it
differently, and the tensor that a model would get must be the one of the file as it was: bit for bit, but for units,
whose conversion may round the last digit of float32 another way. The examples of a property are shared out among the
layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.data import sources
from climafuse.data.batch import collate_windows
from climafuse.data.canonical import canonicalize
from climafuse.data.normalization import compute_statistics, denormalize, normalize
from climafuse.data.sources import open_climate
from climafuse.data.window import Box, Window, select_window
from climafuse.errors import CanonicalizationError, OutOfRangeError, VariableNotFoundError
from climafuse.registry import PRODUCTS
from tests.data.layouts import LAYOUTS, ON_LEVELS, UNITS, Layout

ROWS = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
Stored = list[tuple[str, xr.Dataset]]
BUILT_IN = tuple(PRODUCTS)  # before any test registers another


def _share() -> settings:
    # Half as many again: some layouts have fewer ways to be written than examples fall to them.
    return settings(max_examples=-(-(450 if settings().max_examples >= 300 else 34) // len(LAYOUTS)))


@ROWS
def test_opens(layout: Layout, cell, tmp_path):
    """Names, units, cell methods, times and coordinates are canonical, values those of the reference."""
    cell("data", layout.name, "opens")
    known = layout.truth()
    with open_climate(layout.write(known, tmp_path / "files")) as opened:
        assert set(opened.data_vars) == set(layout.names)
        np.testing.assert_array_equal(opened["time"].values, layout.times(known))
        np.testing.assert_array_equal(opened["latitude"].values, known.latitude)
        np.testing.assert_array_equal(opened["longitude"].values, known.longitude)
        for name, values in known.fields.items():
            field = opened[name]
            levels = ("level",) if name in ON_LEVELS else ()
            assert field.dims == ("time", *levels, "latitude", "longitude")
            assert field.dtype == np.float32
            assert field.attrs["units"] == UNITS[name]
            method = {"tp": "sum", "tprate": "mean", "tprate_corrected": "mean"}.get(name, layout.method)
            assert field.attrs["cell_methods"].split(" (")[0].endswith(f"time: {method}")
            np.testing.assert_array_equal(np.isnan(field.values), np.isnan(values))
            np.testing.assert_allclose(field.values, values, rtol=0, atol=layout.tolerance(name))
            if levels:
                np.testing.assert_array_equal(opened["level"].values, known.level)


class Files:
    """The files of one layout as stored, in memory, and what comes out of them as they are."""

    def __init__(self, layout: Layout, folder: Any) -> None:
        self.layout = layout
        self.channels = [
            channel
            for name in layout.names
            for channel in ([f"{name}500", f"{name}850"] if name in ON_LEVELS else [name])
        ]
        paths = sources._paths(layout.write(layout.truth(), folder / layout.name.replace("/", "")))
        self.stored: Stored = [(path, part.load()) for path in paths for part in sources._open(path)]
        opened = self.open(self.stored)
        self.statistics = compute_statistics(opened, range(opened.sizes["time"]))
        self.window = Window.from_dataset(opened)
        self.tensors = self.collate(self.stored)

    def open(self, stored: Stored) -> xr.Dataset:
        """What ``open_climate`` does with files, from datasets."""
        if len(stored) == 1:
            return open_climate(stored[0][1], variables=self.channels)
        return canonicalize(stored, self.channels)

    def collate(self, stored: Stored) -> dict[str, torch.Tensor]:
        """From files to what a model gets."""
        with dask.config.set(scheduler="synchronous"):
            opened = self.open(stored)
            window = select_window(opened, time=opened["time"].values[-1], history=4)
        return collate_windows([window], self.statistics)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[Layout], Files]:
    """The files of a layout, written when first asked for."""
    known: dict[str, Files] = {}
    folder = tmp_path_factory.mktemp("layouts")

    def files_of(layout: Layout) -> Files:
        if layout.name not in known:
            known[layout.name] = Files(layout, folder)
        return known[layout.name]

    return files_of


# Other ways to write the same fields.


def _latitude_order(draw: Any, layout: Layout, dataset: xr.Dataset) -> xr.Dataset:
    rows = range(dataset.sizes[layout.axes["latitude"]])
    order = draw(st.one_of(st.just(list(rows)[::-1]), st.permutations(rows)))
    return dataset.isel({layout.axes["latitude"]: order})


def _longitude_convention(draw: Any, layout: Layout, dataset: xr.Dataset) -> xr.Dataset:
    """Another cut through the circle, another turn of it, columns in any order, one meridian twice."""
    name = layout.axes["longitude"]
    num = dataset.sizes[name]
    west = draw(st.sampled_from([-360.0, -180.0, -45.0, 0.0, 135.0, 360.0]))
    degrees = (dataset[name].values - west) % 360 + west
    columns = list(np.argsort(degrees))
    if draw(st.booleans()):
        columns, degrees = [*columns, columns[0]], np.append(degrees[columns], degrees.min() + 360)
    else:
        columns = draw(st.one_of(st.just(columns), st.permutations(range(num))))
        degrees = degrees[columns]
    chosen = dataset.isel({name: columns})
    return chosen.assign_coords({name: (name, degrees.astype(dataset[name].dtype), dataset[name].attrs)})


_AXIS_NAMES = {
    "time": ["time", "valid_time", "Time", "TIME"],
    "level": ["level", "pressure_level", "isobaricInhPa"],
    "latitude": ["latitude", "lat", "Latitude", "LAT"],
    "longitude": ["longitude", "lon", "Longitude", "LON"],
}


def _spellings(canonical: str) -> list[str]:
    return sorted({canonical}.union(*(PRODUCTS.get(key).spellings.get(canonical, ()) for key in BUILT_IN)))


def _names(draw: Any, layout: Layout, dataset: xr.Dataset) -> xr.Dataset:
    """Names of any product, for each field and coordinate by itself."""
    changes = {}
    for canonical, name in _fields(layout, dataset).items():
        changes[name] = draw(st.sampled_from(_spellings(canonical)))
    for axis, name in layout.axes.items():
        if name in dataset.dims:
            changes[name] = draw(st.sampled_from(_AXIS_NAMES[axis]))
    return dataset.rename({old: new for old, new in changes.items() if old != new})


# Written down once more: SI value = scale * value + offset.
_OTHER_UNITS: dict[str, dict[str, tuple[float, float]]] = {
    "K": {"K": (1, 0), "degC": (1, 273.15), "celsius": (1, 273.15), "degF": (5 / 9, 459.67 * 5 / 9)},
    "Pa": {"Pa": (1, 0), "hPa": (100, 0), "millibars": (100, 0), "kPa": (1000, 0)},
    "m s-1": {"m s**-1": (1, 0), "m/s": (1, 0), "km h-1": (1 / 3.6, 0), "knots": (1852 / 3600, 0)},
    "m": {"m": (1, 0), "meters": (1, 0)},
    "kg m-2 s-1": {"kg m**-2 s**-1": (1, 0), "mm/day": (1 / 86400, 0), "mm h-1": (1 / 3600, 0)},
    "kg kg-1": {"kg kg**-1": (1, 0), "g/kg": (1e-3, 0)},
    "m2 s-2": {"m**2 s**-2": (1, 0), "J kg-1": (1, 0)},
    "kg m-2": {"kg m**-2": (1, 0), "mm": (1, 0)},
    "Pa s-1": {"Pa s**-1": (1, 0), "hPa/h": (100 / 3600, 0)},
    "1": {"1": (1, 0), "%": (0.01, 0), "(0 - 1)": (1, 0)},
}


def _units(draw: Any, layout: Layout, dataset: xr.Dataset) -> xr.Dataset:
    """Unpacked, and in another unit."""
    changed = dataset.copy()
    for canonical, name in _fields(layout, dataset).items():
        field = dataset[name].variable
        values = _decoded(field, *layout._conversion(canonical))
        unit = draw(st.sampled_from(sorted(_OTHER_UNITS[UNITS[canonical]])))
        scale, offset = _OTHER_UNITS[UNITS[canonical]][unit]
        packing = ("scale_factor", "add_offset", "_FillValue", "missing_value", "fmissing_value", "units",
                   "valid_range", "vmax", "vmin")  # fmt: skip
        kept = {key: value for key, value in field.attrs.items() if key not in packing}
        changed[name] = (field.dims, (values - offset) / scale, {**kept, "units": unit})
    return changed


def _decoded(field: xr.Variable, scale: float, offset: float) -> np.ndarray:
    """SI values in double precision: fill values, packing and unit undone."""
    stored = field.values
    values = stored.astype(np.float64)
    values = values * field.attrs.get("scale_factor", 1.0) + field.attrs.get("add_offset", 0.0)
    for key in ("_FillValue", "missing_value"):
        values[stored == field.attrs.get(key, np.nan)] = np.nan
    return values * scale + offset


def _dimension_order(draw: Any, layout: Layout, dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign(
        {
            name: dataset[name].transpose(*draw(st.permutations(dataset[name].dims)))
            for name in _fields(layout, dataset).values()
        }
    )


def _chunking(draw: Any, layout: Layout, dataset: xr.Dataset) -> xr.Dataset:
    halves = {dim: draw(st.sampled_from([size, -(-size // 2)])) for dim, size in dataset.sizes.items()}
    single = draw(st.sampled_from([None, *dataset.dims]))
    return dataset.chunk(halves if single is None else halves | {single: 1})


def _fields(layout: Layout, dataset: xr.Dataset) -> dict[str, str]:
    """Canonical name -> name, of the fields of this file. GRIB names those with digits another way."""
    names = {name: name for name in layout.names} if layout.file.startswith("grib") else layout.names
    return {canonical: name for canonical, name in names.items() if name in dataset}


TRANSFORMATIONS = {
    "latitude order": _latitude_order,
    "longitude": _longitude_convention,
    "units": _units,
    "dimension order": _dimension_order,
    "chunks": _chunking,
    "names": _names,  # the last one: the others go by the names of the layout
}


@ROWS
@pytest.mark.parametrize(
    "column", [*(pytest.param(name, marks=pytest.mark.slow) for name in TRANSFORMATIONS), "all of these"]
)
@pytest.mark.sampled(2)
def test_the_field_tensor_is_the_same(column: str, layout: Layout, files, cell):
    """However the files are written: alone, each way of writing them, and all ways at once."""
    steps = list(TRANSFORMATIONS.values()) if column == "all of these" else [TRANSFORMATIONS[column]]

    @_share()
    @given(st.data())
    def same(data: Any) -> None:
        cell("data", layout.name, column)
        original = files(layout)
        stored = original.stored
        for step in steps:
            stored = [(path, step(data.draw, layout, part)) for path, part in stored]
        _assert_same(original.tensors, original.collate(stored), original, rounded=_units in steps)

    same()


def _assert_same(
    expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], files: Files, *, rounded: bool
) -> None:
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        if key == "climate_fields" and rounded:
            # One unit in the last place of the physical value, which is larger in units of its deviation.
            names = [str(name) for name in files.statistics["variable"].values]
            physical = [
                denormalize(each["climate_fields"].numpy(), files.statistics, names)
                for each in (expected, found)
            ]
            spread = files.statistics["std"].values[:, None, None] + np.abs(physical[0])
            assert (np.abs(physical[1] - physical[0]) <= 2**-21 * spread).all()
        else:
            assert torch.equal(found[key], tensor), key


# What holds of every dataset, tried on every product's.


@ROWS
@pytest.mark.sampled(4)
def test_normalization_inverts(layout: Layout, files, cell):
    """To one unit in the last place of the larger of a value and its distance from the mean."""

    @_share()
    @given(st.data())
    def inverts(data: Any) -> None:
        cell("data", layout.name, "normalization")
        opened = files(layout).open(files(layout).stored)
        window = files(layout).window
        steps = data.draw(st.lists(st.integers(0, opened.sizes["time"] - 1), min_size=1, unique=True))
        statistics = compute_statistics(opened, sorted(steps))
        stretch = data.draw(st.sampled_from([1.0, 1e-3, -1.0, 1e3]))  # values far from those of training, too
        fields = (window.fields * np.float32(stretch)).astype(np.float32)
        back = denormalize(normalize(fields, statistics, window.variables), statistics, window.variables)
        distance = np.abs(fields - statistics["mean"].values[:, None, None])
        limit = np.spacing(np.maximum(np.abs(fields), distance).astype(np.float32))
        np.testing.assert_array_equal(np.isnan(back), np.isnan(fields))
        assert (np.abs(back - fields) <= limit)[~np.isnan(fields)].all()

    inverts()


@ROWS
@pytest.mark.sampled(4)
def test_windows_over_the_dateline_equal_the_rolled_field(layout: Layout, files, cell):
    """Columns from the western edge on, by rolling the whole field until that edge is its first."""
    quarters = st.integers

    @_share()
    @given(quarters(-360, 360), quarters(-1440, 1440), quarters(1, 720), quarters(1, 1440))
    def equal(latitude: int, longitude: int, height: int, width: int) -> None:
        cell("data", layout.name, "dateline")
        opened, whole = files(layout).open(files(layout).stored), files(layout).window
        box = Box(latitude / 4, longitude / 4, height / 4, width / 4)
        south, north = latitude / 4 - height / 8, latitude / 4 + height / 8
        rows = (whole.latitude >= south) & ((whole.latitude < north) | (north >= 90))
        east_of_edge = (whole.longitude - (longitude / 4 - width / 8)) % 360
        first, count = int(np.argmin(east_of_edge)), int((east_of_edge < width / 4).sum())
        if not (rows.any() and count):
            with pytest.raises(OutOfRangeError):
                select_window(opened, time=whole.time[-1], box=box)
            return
        window = select_window(opened, time=whole.time[-1], box=box, history=2)
        rolled = np.roll(whole.fields, -first, axis=-1)[-2:, :, rows, :count]
        np.testing.assert_array_equal(window.fields, rolled)
        np.testing.assert_array_equal(window.longitude, np.roll(whole.longitude, -first)[:count])
        np.testing.assert_array_equal(window.latitude, whole.latitude[rows])

    equal()


@ROWS
def test_sums_and_means_are_never_equated(layout: Layout, files, cell):
    """A field that says, by name, unit or cell method, that it is the other kind is refused."""

    @_share()
    @given(st.data())
    def refused(data: Any) -> None:
        cell("data", layout.name, "sums and means")
        names = {n: v for _, part in files(layout).stored for n, v in _fields(layout, part).items()}
        canonical = data.draw(st.sampled_from(sorted(names)))
        claims = ["cell method", *(["unit", "name", "request"] if canonical in ("tp", "tprate") else [])]
        claim = data.draw(st.sampled_from(claims))
        other = {"tp": "tprate", "tprate": "tp"}.get(canonical, "")
        if claim == "request":
            with pytest.raises(VariableNotFoundError, match=other):
                canonicalize(files(layout).stored, [other])
            return
        holders = [(path, part) for path, part in files(layout).stored if names[canonical] in part]
        methods = {"tp": ["mean", "point"], "tprate": ["sum", "point"]}.get(canonical, ["sum"])
        method = data.draw(st.sampled_from([*methods, "maximum", "minimum"]))
        spelling = data.draw(st.sampled_from(_spellings(other)))
        units = data.draw(st.sampled_from(sorted(_OTHER_UNITS.get(UNITS.get(other, ""), {"": (1, 0)}))))
        changed: Stored = []
        for path, part in holders:
            field = part[names[canonical]]
            if claim == "cell method":
                stated = {"cell_methods": f"time: {method}"}
                changed.append((path, part.assign({names[canonical]: field.assign_attrs(stated)})))
            elif claim == "unit":
                changed.append((path, part.assign({names[canonical]: field.assign_attrs(units=units)})))
            else:
                changed.append((path, part.rename({names[canonical]: spelling})))
        with pytest.raises(CanonicalizationError):
            canonicalize(changed, [canonical if claim != "name" else other])

    refused()
